"""Real device exports, all in one run: no record is lost, and what comes in is what Python's csv and json modules read from the files."""

import csv
import json
import shutil
from collections import Counter
from datetime import UTC, datetime

import pytest
import yaml

from tests.fusion.test_ingest import KEY, REPO, counts, id_of, run_config
from tests.sources import mapping_file
from twinlib import sources
from twinlib.fusion import quality
from twinlib.fusion.ingest import ingest
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.sources.pseudonym import pseudonym

pytestmark = pytest.mark.realdata
WEAR = ("2305", "2405")  # one of them with repeated rows and three clocks
WIDE_ROWS = 60


def rows(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8-sig") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def raw(data, tmp_path_factory):
    """The files of the run: whole ones, but of the wearables two people, and of the wide Fitbit files the first rows."""
    folder = tmp_path_factory.mktemp("real")
    for kind in ("Activity Data/UoMActivity", "Sleep Data/UoMsleep"):
        for who in WEAR:
            target = folder / "wear" / f"{kind}{who}.csv"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / "t1d_uom_wear" / f"{kind}{who}.csv", target)
    shutil.copytree(data / "fitbit_fitabase_2016", folder / "fitbit")
    for path in (folder / "fitbit").glob("minute*Wide*"):
        path.chmod(0o600)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: WIDE_ROWS + 1]))
    (folder / "tidepool").mkdir()
    shutil.copy(data / "tidepool_jellyfish" / "example-from-j-jellyfish.json", folder / "tidepool" / "jill.json")
    (folder / "iglu").mkdir()
    shutil.copy(data / "iglu_examples" / "example_data_5_subject.csv", folder / "iglu")
    return folder


@pytest.fixture(scope="module")
def got(spark, raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mappings")
    names = {"t1d_uom_wear": "wear", "fitbit_fitabase": "fitbit", "tidepool_json": "tidepool", "iglu": "iglu"}
    mapped = [(mapping_file(folder, yaml.safe_load((REPO / "conf" / "mappings" / f"{m}.yaml").read_text())), raw / r) for m, r in names.items()]
    config = run_config(*mapped)
    sources.check(config)
    result = ingest(spark, config, KEY)
    yield result
    result.release()


@pytest.fixture(scope="module")
def found(got):
    return counts(got)


def test_wearables_of_t1d_uom(raw, got, found):
    activity = [(who, r) for who in WEAR for r in rows(raw / "wear" / "Activity Data" / f"UoMActivity{who}.csv")]
    sleep = [(who, r) for who in WEAR for r in rows(raw / "wear" / "Sleep Data" / f"UoMsleep{who}.csv")]
    for entry, column in (("walking", "step_count"), ("energy", "active_Kcal")):
        facts = {(w, r["start_time_s"], float(r[column]), r["duration_s"], r["activity_type"].lower()) for w, r in activity}
        assert found[f"t1d_uom_wear.activity.{entry}"] == (len(activity), len(facts), len(activity) - len(facts), 0)
    assert len({tuple(r.values()) for w, r in activity if w == "2305"}) < 0.7 * len([1 for w, _ in activity if w == "2305"])
    offsets = {r.utc_offset_minutes for r in got.exposures.where(f"patient_id = '{id_of('2305')}' AND agent = 'walking'").select("utc_offset_minutes").distinct().collect()}
    assert offsets == {0, 60, -300}
    beats = [r for _, r in sleep if r["heart_rate"] != "0"]
    read, accepted, duplicates, refused = found["t1d_uom_wear.sleep.heart_rate"]
    assert read == len(beats) and duplicates == 0
    reasons = Counter(r.reason for r in got.quarantine.where("source = 't1d_uom_wear.sleep.heart_rate'").collect())
    assert sum(reasons.values()) == refused and set(reasons) <= {"nonexistent_local_time", "out_of_range"}
    assert found["t1d_uom_wear.sleep.asleep"][0] == sum(r["sleep_level"] == "1" for _, r in sleep)


def test_fitbit(raw, got, found):
    wide = rows(raw / "fitbit" / "minuteStepsWide_merged.csv")
    assert found["fitbit_fitabase.minute_steps"] == (60 * WIDE_ROWS, 60 * WIDE_ROWS, 0, 0)
    total = sum(int(v) for r in wide for k, v in r.items() if k.startswith("Steps"))
    steps = got.observations.where("source = 'fitbit_fitabase.minute_steps'")
    assert steps.agg({"value": "sum"}).first()[0] == total
    first = steps.where("value > 0").orderBy("time").first()
    expected = next(k for k, v in wide[0].items() if k.startswith("Steps") and v != "0")
    assert first.time == datetime(2016, 4, 13, 0, int(expected[-2:]))
    daily = rows(raw / "fitbit" / "dailyActivity_merged.csv")
    low = sum(not 200 <= float(r["Calories"]) <= 20000 for r in daily)
    assert found["fitbit_fitabase.daily_activity.steps"] == (940, 940, 0, 0)
    assert found["fitbit_fitabase.daily_activity.energy"] == (940, 940 - low, 0, low) and low == 7
    sleep = rows(raw / "fitbit" / "sleepDay_merged.csv")
    assert found["fitbit_fitabase.sleep"] == (413, 410, 3, 0) and len({(r["Id"], r["SleepDay"]) for r in sleep}) == 410
    assert found["fitbit_fitabase.weight.weight"] == (67, 67, 0, 0) and found["fitbit_fitabase.weight.fat"] == (2, 2, 0, 0)


def test_tidepools_pump(raw, got, found):
    """Every segment of the pump's basal, temporary ones and suspensions included, and both parts of dual boluses."""
    records = json.loads((raw / "tidepool" / "jill.json").read_text())
    basal = [r for r in records if r["type"] == "basal"]
    assert Counter(r["deliveryType"] for r in basal) == {"scheduled": 433, "temp": 40, "suspend": 25}
    mine = {
        (datetime.fromisoformat(r["time"]).astimezone(UTC).replace(tzinfo=None), r.get("rate") or 0.0, round(r["duration"] / 1000)) for r in basal
    }  # fmt: skip
    rates = got.exposures.where("agent = 'insulin_basal'").collect()
    assert {(r.start, r.amount, round((r.end - r.start).total_seconds())) for r in rates} == mine
    dual = [r for r in records if r["type"] == "bolus" and r.get("extended")]
    boluses = got.exposures.where("agent = 'insulin_bolus'").collect()
    extended = {(r.amount, (r.end - r.start).total_seconds() * 1000) for r in boluses if r.end}
    assert extended == {(r["extended"], r["duration"]) for r in dual} and len(dual) == 2
    given = sum((r.get("normal") or 0) + (r.get("extended") or 0) for r in records if r["type"] == "bolus")
    assert sum(r.amount for r in boluses) == pytest.approx(given)
    assert found["tidepool_json.upload.smbg"][0] == sum(r["type"] == "smbg" for r in records)


def test_iglus_people(raw, got, found):
    read = rows(raw / "iglu" / "example_data_5_subject.csv")
    assert found["iglu.cgm"] == (len(read), len({(r["id"], r["time"]) for r in read}), len(read) - len({(r["id"], r["time"]) for r in read}), 0)
    one = got.observations.where(f"patient_id = '{pseudonym(KEY, 'iglu', 'Subject 1')}'").collect()
    assert {(f"{r.time:%Y-%m-%d %H:%M:%S}", r.value) for r in one} == {(r["time"], float(r["gl"])) for r in read if r["id"] == "Subject 1"}


def test_quality_of_every_source_is_summed_up(got):
    sensors = load_vocabulary().sensors
    summary = {r.source: r for r in quality.summary(got.observations, sensors, quality.GATES, "run").collect()}
    accepted = {r.source: r.accepted for r in got.counts.collect()}
    assert all(r.readings == accepted[s] for s, r in summary.items())
    assert summary["iglu.cgm"].spacing_minutes == 5 and 0 < summary["iglu.cgm"].wear_fraction < 1
    assert summary["t1d_uom_wear.sleep.heart_rate"].spacing_minutes == 5
