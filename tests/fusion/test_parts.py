"""Parts of whole patients: of one bucket each, and of about the same size whatever the cohort."""

from collections import namedtuple

import numpy as np

from twinlib.fusion.reading import RECORDS, parts_for
from twinlib.tables.buckets import buckets_of

File = namedtuple("File", "size dense")


def test_parts_grow_with_the_records_and_each_is_of_one_bucket():
    assert parts_for([File(10_000, False)], 8) == parts_for([], 8) == 8
    csv, parquet = [File(64 * RECORDS, False)] * 40, [File(8 * RECORDS, True)] * 40
    assert parts_for(csv, 8) == parts_for(parquet, 8) == 40 and parts_for(csv, 16) == 48
    ids = [f"{k:032x}" for k in range(500)] + [None]
    np.testing.assert_array_equal(buckets_of(ids, 48) % 16, buckets_of(ids, 16))
