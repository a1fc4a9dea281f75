"""Clocks that were set: stretches found in series, and what ingest makes of them."""

import itertools
from collections import Counter

import numpy as np
import pytest

from tests.fusion.test_ingest import KEY, counts, id_of, run_config, write
from tests.sources import mapping_file
from twinlib.fusion.clock_jumps import MINUTE, Stretch, stretches
from twinlib.fusion.ingest import ingest

N = 400


def series(*moved: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Readings every five minutes; (first, last, minutes) of places whose clock was ahead by so much."""
    time = 5.0 * np.arange(N)
    for first, last, minutes in moved:
        time[first : last + 1] += minutes
    return (time * MINUTE).astype(np.int64), 100 + 30 * np.sin(np.arange(N) / 20), np.zeros(N, bool)


@pytest.mark.parametrize("moved", [(100, 150, 180), (100, 150, -180), (200, 210, 60), (5, 320, 720), (100, 102, -60)])
def test_a_stretch_ahead_or_behind_is_found_whichever_way_the_file_runs(moved):
    time, value, repeated = series(moved)
    assert stretches(time, value, repeated) == [Stretch(moved[0], moved[1], 0)]
    back = stretches(time[::-1], value[::-1], repeated[::-1])
    assert back == [Stretch(N - 1 - moved[1], N - 1 - moved[0], 0)]


def test_several_stretches_and_a_missing_reading_at_the_edge():
    time, value, repeated = series((50, 90, 120), (200, 260, -300))
    keep = np.arange(N) != 50
    assert stretches(time[keep], value[keep], repeated[keep]) == [Stretch(50, 89, 0), Stretch(199, 259, 0)]


def test_where_nothing_undoes_a_step_back_both_sides_are_unclear():
    time, value, repeated = series((200, N - 1, -60))  # set back by an hour for good: 12 readings before, 12 after
    assert stretches(time, value, repeated) == [Stretch(188, 211, 0)]


def test_gaps_files_put_together_repetitions_and_disorder_are_no_jump():
    time, value, repeated = series()
    ahead = series((200, N - 1, 600))[0]  # a forward step alone is a gap
    assert stretches(time, value, repeated) == [] and stretches(ahead, value, repeated) == []
    older_last = np.concatenate([time + 30 * 1440 * MINUTE, time])
    assert stretches(older_last, np.tile(value, 2), np.tile(repeated, 2)) == []
    again = np.r_[0:N, N - 100 : N]  # an export appended that begins before the last one ended
    assert stretches(time[again], value[again], repeated[again]) == []
    mixed = np.random.default_rng(1).permutation(N)
    assert stretches(time[mixed], value[mixed], repeated[mixed]) == []
    assert stretches(time[:5], value[:5], repeated[:5]) == []


def test_the_second_pass_of_a_repeated_hour_is_moved():
    time, value, repeated = series((112, 123, -60))  # local times read as the first pass
    repeated[100:124] = True
    assert stretches(time, value, repeated) == [Stretch(112, 123, 60 * MINUTE)]


def test_ingest_refuses_a_stretch_and_moves_a_second_pass(spark, tmp_path):
    """One night in London when the clocks go back, and a device that was two hours ahead for a while."""
    value = itertools.cycle(range(100, 117))

    def row(minute: int, ahead: int = 0) -> str:
        m = minute + ahead
        return f"27/10/2024 {m // 60:02d}:{m % 60:02d},{next(value)}"

    night = [row(m) for m in range(0, 120, 5)] + [row(m) for m in range(60, 360, 5)]  # 1:00 to 2:00 comes twice
    day = [row(m, 120 if 480 <= m < 540 else 0) for m in range(360, 900, 5)]
    mapping = {
        "name": "clock",
        "files": [{
            "name": "cgm", "glob": "*.csv", "format": "csv", "patient": {"file": r"(\w+)\.csv"},
            "time": {"column": "at", "formats": ["d/M/yyyy H:mm"], "zone": "Europe/London"},
            "entries": [{"observation": "glucose", "value": {"column": "v", "unit": "mg/dL"}}],
        }],
    }  # fmt: skip
    root = write(tmp_path / "raw", {"p1.csv": "\n".join(["at,v", *night, *day]) + "\n"})
    got = ingest(spark, run_config((mapping_file(tmp_path, mapping), root)), KEY)
    assert counts(got)["clock.cgm"] == (len(night) + len(day), len(night) + len(day) - 12, 0, 12)
    first = 2 + len(night) + 24
    assert Counter((r.reason, r.line) for r in got.quarantine.collect()) == Counter(("clock_jump", first + k) for k in range(12))
    rows = got.observations.where(f"patient_id = '{id_of('p1')}'").orderBy("time").collect()
    minutes = [(b.time - a.time).total_seconds() / 60 for a, b in zip(rows, rows[1:])]
    assert Counter(minutes) == {5: len(minutes) - 1, 65: 1}  # even over the hour that came twice
    assert [r.utc_offset_minutes for r in rows[:24]] == [60] * 24 and rows[24].utc_offset_minutes == 0
    got.release()
