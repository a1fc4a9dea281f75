"""Parquet files read by Spark itself: numbers and instants keep their types, and only the different patient ids pass through Python.

What a file may hold for this path: columns of texts, numbers, truth values, dates and instants, and the patient in a column or a constant;
and entries that choose rows by `when` and `unless` only (`Entry.plain`).
All other files, and those that cannot be opened, go through Arrow (`mapped.extract`), which also says what is wrong with them. The path
of a file stands in the plan here; where it holds the patient's id it never comes this way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib.sources.files import File
from twinlib.sources.mapping import Entry, FileGroup
from twinlib.sources.pseudonym import pseudonyms
from twinlib.sources.records import RECORDS, Part

BLANKS = " \t\r\n\f\v\u00a0"
_PLAIN = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal,
          pa.types.is_date, pa.types.is_timestamp)  # fmt: skip
WORTH = 200_000  # rows of a group of files from which on its own plans pay; fewer go through Arrow with all the rest
_TEXTS = [tuple(c.split()) for c in RECORDS.split(", ")]
_SAFE = re.compile(r"[\w./=-]+", re.ASCII)  # what a URI spells as it is


def uri(root: str) -> str:
    """A folder as Spark names it, without a slash at its end."""
    return (root.replace("s3://", "s3a://", 1) if "://" in root else f"file://{Path(root).absolute()}").rstrip("/")


def split(group: FileGroup, files: list[File], system, base: str, needed: set[str]) -> tuple[dict[pa.Schema, list[File]], list[File]]:
    """(files that Spark can read and that are worth it, by schema; the others)."""
    ours: dict[pa.Schema, list[File]] = {}
    simple = not group.patient.file and not group.unpivot and not group.device and all(e.plain and not e.present for e in group.entries)
    if group.format == "parquet" and simple:
        rows: dict[pa.Schema, int] = {}
        for file in files:
            schema, n = _footer(file, system) if _SAFE.fullmatch(base.split("://")[1] + file.relative) else (None, 0)
            if schema is not None and needed <= set(schema.names) and all(any(test(f.type) for test in _PLAIN) for f in schema):
                ours.setdefault(schema, []).append(file)
                rows[schema] = rows.get(schema, 0) + n
        ours = {schema: some for schema, some in ours.items() if rows[schema] >= WORTH}
    taken = {f.path for some in ours.values() for f in some}
    return ours, [f for f in files if f.path not in taken]


def _footer(file: File, system) -> tuple[pa.Schema | None, int]:
    """Schema and number of rows of a Parquet file; no schema where Spark could not tell its columns apart, or it cannot be read."""
    try:
        with system.open_input_file(file.path) as stream:
            opened = pq.ParquetFile(stream)
            schema, rows = opened.schema_arrow.remove_metadata(), opened.metadata.num_rows
    except (pa.ArrowInvalid, OSError):
        return None, 0
    distinct = len({n.lower() for n in schema.names}) == len(schema.names)  # to Spark, names that differ in case are the same
    return (schema if distinct else None), rows


def parts(
    spark: SparkSession, group: FileGroup, own: int, entries: tuple[tuple[int, Entry], ...], schema: pa.Schema, files: list[File],
    base: str, key: bytes, namespace: str,
) -> Iterator[Part]:  # fmt: skip
    """One frame per entry, and one with the tally of every file. `own`: the number of the group; `base`: `uri` of the source's root."""
    paths = [f"{base}/{f.relative}" for f in files]
    root = base.split("://")[1] + "/"  # Spark writes file:/ or file:///
    path = F.col("_metadata.file_path")
    file = F.substring(path, F.instr(path, root) + len(root), F.lit(4096))
    scan = spark.read.parquet(*paths).select(
        *[F.col(_quoted(n)) for n in schema.names], file.alias("_file"), (F.col("_metadata.row_index") + 1).alias("_line")
    )
    columns = {n: F.col(_quoted(n)) for n in schema.names}
    rows, ids = _identified(spark, group, scan, columns, key, namespace)
    conditions = {number: _wanted(group, entry, columns) for number, entry in entries}
    for number, entry in entries:
        chosen = rows if conditions[number] is None else rows.where(conditions[number])
        yield Part(chosen.select(*_fields(group, number, entry, schema, columns)), number)
    yield _tally(spark, scan, own, files, conditions)


def _identified(spark, group: FileGroup, scan: DataFrame, columns: dict[str, Column], key: bytes, namespace: str):
    """`scan` with patient_id and _raw. HMAC is worked out once per different id."""
    if group.patient.column is None:
        known = pseudonyms(key, namespace, pa.array([group.patient.constant]))[0].as_py()
        return scan.withColumns({"patient_id": F.lit(known), "_raw": F.lit(group.patient.constant)}), None
    raw = _cell(group, columns[group.patient.column])

    def name(batches):
        for batch in batches:
            yield pa.RecordBatch.from_arrays([batch.column(0), pseudonyms(key, namespace, batch.column(0))], names=["_raw", "patient_id"])

    # kept from here on: every later pass over the files joins with it
    ids = scan.select(raw.alias("_raw")).distinct().mapInArrow(name, "_raw string, patient_id string").localCheckpoint()
    return scan.withColumn("_raw", raw).join(F.broadcast(ids), "_raw", "left"), ids


def _tally(spark, scan: DataFrame, own: int, files: list[File], conditions: dict[int, Column | None]) -> Part:
    """One row per file with the number of its rows that no entry wants."""
    names = spark.createDataFrame(pa.table({"file": [f.relative for f in files]}))
    if any(c is None for c in conditions.values()):
        counts = names.withColumn("ignored", F.lit(0).cast("bigint"))
    else:
        unwanted = ~F.greatest(*[F.coalesce(c, F.lit(False)) for c in conditions.values()], F.lit(False))
        found = scan.groupBy(F.col("_file").alias("file")).agg(F.count_if(unwanted).alias("ignored"))
        counts = names.join(found, "file", "left").withColumn("ignored", F.coalesce("ignored", F.lit(0)).cast("bigint"))
    given = {"entry": F.lit(own), "file": F.col("file"), "ignored": F.col("ignored")}
    return Part(counts.select(*[given.get(n, F.lit(None)).cast(t).alias(n) for n, t in _TEXTS]), own)


def _wanted(group: FileGroup, entry: Entry, columns: dict[str, Column]) -> Column | None:
    """Condition of the rows that the entry wants; None = all."""
    tests = []
    for conditions, wanted in ((entry.when, True), (entry.unless, False)):
        for column, texts in conditions.items():
            hit = F.coalesce(F.btrim(columns[column].cast("string"), F.lit(BLANKS)).isin(*texts), F.lit(False))
            tests.append(hit if wanted else ~hit)
    if entry.optional and entry.value and entry.value.column:
        tests.append(_cell(group, columns[entry.value.column]).isNotNull())
    if not tests:
        return None
    condition = tests[0]
    for t in tests[1:]:
        condition &= t
    return condition


def _cell(group: FileGroup, column: Column) -> Column:
    """Trimmed text, null where the cell counts as empty."""
    text = F.btrim(column.cast("string"), F.lit(BLANKS))
    return F.when(~text.isin("", *group.missing), text)


def _fields(group: FileGroup, number: int, entry: Entry, schema: pa.Schema, columns: dict[str, Column]) -> list[Column]:
    """RECORDS and the typed columns beside them; `record` is a struct, made text where it is needed."""
    nothing = F.lit(None)

    def cell(name: str | None) -> Column:
        return _cell(group, columns[name]) if name else nothing

    clock, value, attributes = group.clock(entry), entry.value, entry.patient
    given = {
        "entry": F.lit(number), "file": F.col("_file"), "line": F.col("_line"), "patient_id": F.col("patient_id"),
        "end": cell(entry.end), "available": cell(entry.available_at), "label": cell(entry.label),
        "duration": cell(entry.duration.column if entry.duration else None), "offset": cell(clock.offset_column if clock else None),
        "unit": cell(value.unit_column if value else None),
    }  # fmt: skip
    typed = {"stamp": nothing.cast("timestamp"), "stamp_named": F.lit(False), "amount": nothing.cast("double")}
    if clock and len(clock.column) == 1 and pa.types.is_timestamp(schema.field(clock.column[0]).type):
        typed["stamp"] = columns[clock.column[0]].cast("timestamp")  # a wall clock's digits: the session runs in UTC
        typed["stamp_named"] = F.lit(schema.field(clock.column[0]).type.tz is not None)
    elif clock:
        cells = [cell(c) for c in clock.column]
        given["time"] = cells[0] if len(cells) == 1 else F.concat(*[x for c in cells for x in (c, F.lit(" "))][:-1])
    if value and value.column is None:
        typed["amount"] = F.lit(float(value.constant))
    elif value and _is_number(schema.field(value.column).type) and group.missing == ("",):
        number_ = columns[value.column].cast("double")
        typed["amount"] = F.when(~F.isnan(number_), number_)
        given["value"] = F.when(F.isnan(number_), F.lit("NaN"))
    elif value:
        given["value"] = cell(value.column)
    if attributes:
        given |= {"sex": cell(attributes.sex), "birth_date": cell(attributes.birth_date or attributes.birth_year)}
    texts = [given.get(n, nothing).cast(t).alias(n) for n, t in _TEXTS if n != "record"]
    return [*texts, _record(group, columns).alias("record"), *[c.alias(n) for n, c in typed.items()]]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _record(group: FileGroup, columns: dict[str, Column]) -> Column:
    """The row with the patient's id hidden as `verbatim.verbatim` does it."""
    needed = set().union(*(group.columns(e) for e in group.entries))

    def shown(name: str, column: Column) -> Column:
        text = column.cast("string")
        if name in group.hidden:
            return F.when(text == "", text).otherwise(F.when(text.isNotNull(), F.lit("(hidden)")))
        if name == group.patient.column:
            return F.col("patient_id")
        if name in needed:
            return text
        return F.when((F.btrim(text, F.lit(BLANKS)) == F.col("_raw")) & (text != ""), F.col("patient_id")).otherwise(text)

    return F.struct(*[shown(n, c).alias(n) for n, c in columns.items()])


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
