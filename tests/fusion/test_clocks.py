"""Clocks against Python's zoneinfo."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from twinlib.fusion import clocks
from twinlib.fusion.clocks import NOTHING, stamps
from twinlib.fusion.zones import zone
from twinlib.sources.mapping import Clock

# around changes of the clocks: by an hour, by half an hour (Lord Howe), and none
CASES = {
    "Europe/London": ["2024-03-31 00:30", "2024-10-27 00:30"],
    "America/New_York": ["2024-03-10 01:30", "2024-11-03 00:30"],
    "Australia/Lord_Howe": ["2024-04-07 01:00", "2024-10-06 01:30"],
    "Asia/Kolkata": ["2024-06-01 12:00"],
}


def reference(local: datetime, zone: str):
    """(exists, happened twice, first instant in UTC)."""
    first, second = (local.replace(tzinfo=ZoneInfo(zone), fold=f).astimezone(UTC) for f in (0, 1))
    exists = first.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == local
    return exists, exists and first != second, first.replace(tzinfo=None)


def micros(local: datetime) -> int:
    return round(local.replace(tzinfo=UTC).timestamp() * 1e6)


def shown(instants: np.ndarray, form: str = "%Y-%m-%d %H:%M:%S.%f") -> list[str | None]:
    return [None if x == NOTHING else datetime.fromtimestamp(x / 1e6, UTC).strftime(form) for x in instants.tolist()]


@pytest.mark.parametrize("name", CASES)
def test_gaps_folds_and_offsets(name):
    locals_ = [datetime.fromisoformat(t) + timedelta(minutes=10 * k) for t in CASES[name] for k in range(16)]
    clock, n = Clock(column="t", formats=["d/M/yyyy H:mm"], zone=name), len(locals_)
    found = stamps(pa.array([f"{t:%-d/%-m/%Y %-H:%M}" for t in locals_]), clock.formats)
    assert found.wall.tolist() == [micros(t) for t in locals_] and not found.named.any()
    utc, gap, fold = clocks.to_utc(found.wall, found.named, clock, np.full(n, np.nan))
    offset = clocks.local_offset(utc, clock)
    for k, local in enumerate(locals_):
        exists, twice, first = reference(local, name)
        assert gap[k] == (not exists) and fold[k] == twice
        if exists:
            assert utc[k] == micros(first) and offset[k] == (local - first) / timedelta(minutes=1)


@pytest.mark.parametrize("name", ["UTC", *CASES, "Africa/Casablanca", "America/Sao_Paulo"])
def test_offsets_of_two_centuries(name):
    instants = np.random.default_rng(1).integers(-2_208_988_800, 4_102_444_800, 2000)
    expected = [datetime.fromtimestamp(int(t), UTC).astimezone(ZoneInfo(name)).utcoffset() / timedelta(microseconds=1) for t in instants]
    assert zone(name).offsets(instants * 1_000_000).tolist() == expected


def test_iso_texts_with_and_without_zone():
    clock = Clock(column="t", zone="America/New_York")
    texts = [
        "2024-01-02T03:04:05.678Z", "2024-01-02 03:04:05+01:00", "2024-01-02 03:04 +0100", "2024-01-02T03:04Z", "2024-01-02T03:04",
        "2024-01-02", "20240102T0304", "2024-02-30 00:00", "2024-01-02T03:04:05.123456789Z", "2024-01-02 24:00", "2024-01-02 03:04:05+19:00", None,
    ]  # fmt: skip
    found = stamps(pa.array(texts), clock.formats)
    utc, _, _ = clocks.to_utc(found.wall, found.named, clock, np.full(len(texts), np.nan))
    assert shown(utc, "%H:%M:%S.%f") == [
        "03:04:05.678000", "02:04:05.000000", "02:04:00.000000", "03:04:00.000000", "08:04:00.000000", None, None, None, "03:04:05.123456", None, None, None,
    ]  # fmt: skip
    assert clocks.stated_offsets(pa.array(texts), found)[:3].tolist() == pytest.approx([np.nan, 60, 60], nan_ok=True)


@pytest.mark.parametrize(
    "pattern, text, expected",
    [
        ("d/M/yyyy H:mm", "1/2/2024 3:04", "2024-02-01 03:04:00"),
        ("d/M/yyyy H:mm", "01/02/2024 03:4", None),  # two letters are two digits
        ("d/M/yyyy H:mm", "1/2/24 3:04", None),
        ("dd.MM.yy HH:mm:ss", "01.02.24 03:04:05", "2024-02-01 03:04:05"),
        ("yyyyMMdd", "20240229", "2024-02-29 00:00:00"),
        ("yyyyMMdd", "20230229", None),
        ("M/d/yyyy h:mm:ss a", "4/12/2016 12:00:00 AM", "2016-04-12 00:00:00"),
        ("M/d/yyyy h:mm a", "4/12/2016 12:05 pm", "2016-04-12 12:05:00"),
        ("M/d/yyyy h:mm a", "4/12/2016 13:05 PM", None),
        ("M/d/yyyy H:'00' mm", "4/12/2016 7:00 05", "2016-04-12 07:05:00"),
        ("d MMM yyyy H:mm:ss.SSS", "3 Sep 2024 1:02:03.5", "2024-09-03 01:02:03.5"),
        ("yyyy-MM-dd HH:mmXXX", "2024-01-02 03:04+01:30", "2024-01-02 01:34:00"),
        ("epoch_s", "86400.5", "1970-01-02 00:00:00.5"),
        ("epoch_ms", "86400500", "1970-01-02 00:00:00.5"),
        ("epoch_ms", "-1", None),
    ],
)
def test_patterns(pattern, text, expected):
    wall = stamps(pa.array([text]), (pattern,)).wall
    assert wall.tolist() == [NOTHING if expected is None else micros(datetime.fromisoformat(expected))]


def test_dates_say_when_they_are_over():
    found = stamps(pa.array(["2024-02-28", "2024-02", "2024", "2024-02-28 10:00", "x"]), ("iso", "yyyy-MM-dd", "yyyy-MM", "yyyy"))
    assert shown(found.until, "%Y-%m-%d") == ["2024-02-29", "2024-03-01", "2025-01-01", None, None]


def test_order_of_day_and_month_per_file():
    files = {
        "day_first": ["25/01/2024", "02/03/2024"],
        "month_first": ["01/25/2024", "02/03/2024"],
        "undecidable": ["02/03/2024", "04/05/2024"],
        "torn": ["25/01/2024", "01/25/2024"],
        "same_either_way": ["05/05/2024"],
        "one_slip": ["25/01/2024"] * 30 + ["01/25/2024"],
        "garbage": ["x"],
    }
    assert {f: clocks.date_order(clocks.told(pa.array(texts), ["d/M/yyyy"])) for f, texts in files.items()} == {
        "day_first": "first",
        "month_first": "second",
        "undecidable": "ambiguous",
        "torn": "ambiguous",
        "same_either_way": "first",
        "one_slip": "first",
        "garbage": "first",
    }


def test_swapped_formats():
    assert clocks.swapped(["dd/M/yyyy HH:mm", "MM-dd-yy"]) == ["MM/d/yyyy HH:mm", "dd-MM-yy"]
