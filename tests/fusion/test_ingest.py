"""Ingest end to end on small files written here, with every bad input of one kind or another, and on the real data sets."""

import csv
import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from tests.sources import mapping_file
from twinlib import sources
from twinlib.config import RunConfig
from twinlib.errors import ConfigError, DataError
from twinlib.fusion.ingest import ingest
from twinlib.fusion.ingested import check_conservation
from twinlib.sources.pseudonym import pseudonym

REPO = Path(__file__).resolve().parents[2]
KEY = b"0123456789abcdef"


def run_config(*mapped: tuple[Path | str, Path | str], **more) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "test",
            "output": "unused",
            "pseudonym_key": {"env": "UNUSED"},
            "sources": [{"mapping": str(m), "root": str(r)} for m, r in mapped],
            **more,
        }
    )


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def id_of(raw: str) -> str:
    return pseudonym(KEY, "", raw)


def counts(got) -> dict[str, tuple[int, int, int, int]]:
    result = {r.source: (r.rows_read, r.accepted, r.duplicates, r.quarantined) for r in got.counts.collect()}
    assert all(read == a + d + q for read, a, d, q in result.values())
    return result


def reasons(got) -> Counter:
    return Counter((r.source, r.line, r.reason) for r in got.quarantine.collect())


CLINIC = yaml.safe_load("""
name: clinic
files:
  - name: cgm
    glob: cgm*.csv
    format: csv
    patient: {column: who}
    time: {column: [day, clock], formats: [d/M/yyyy H:mm], order: auto, zone: Europe/London}
    entries:
      - observation: glucose
        value: {column: glucose, unit_column: unit, units: {a: mg/dL, b: mmol/L}, texts: {Low: 39}}
  - name: doses
    glob: doses.csv
    format: csv
    patient: {column: who}
    time: {column: at, zone: offset, offset_column: offset}
    entries:
      - name: bolus
        when: {what: bolus}
        exposure: insulin_bolus
        value: {column: amount, unit: U, decimal: ","}
        end: until
        available_at: known
      - name: rate
        when: {what: rate}
        exposure: insulin_basal
        kind: rate
        value: {column: amount, unit: U/h}
        duration: {column: minutes, unit: min}
      - {name: food, when: {what: food}, exposure: carbohydrate, value: {column: amount, unit: g}, label: note}
  - name: people
    glob: people.csv
    format: csv
    patient: {column: who}
    entries:
      - patient: {sex: gender, sex_values: {1: male, 2: female}, birth_year: born}
""")

CGM = """who,day,clock,glucose,unit
p1,13/1/2024,0:00,100,a
p1,13/1/2024,0:05,5.5,b
p1,13/1/2024,0:05,99.0858,a
p1,13/1/2024,0:10,110,a
p1,13/1/2024,0:10,120,a
p1,13/1/2024,0:15,0,a
p1,13/1/2024,0:20,2000,a
p1,32/1/2024,0:25,100,a
p1,31/3/2024,1:30,100,a
p1,27/10/2024,1:30,100,a
p1,13/1/2024,0:30,,a
p1,13/1/2024,0:35,high,a
p1,13/1/2024,0:40,100,furlong
,13/1/2024,0:45,100,a
p1,,,100,a
p1,13/1/0024,0:50,100,a
p1,13/1/2024,0:55,Low,a
p1,13/1/2024,1:00,1,2,3
""" + "".join(f"p2,14/1/2024,{k}:00,{90 + k},b\n" for k in range(6))

DOSES = """who,what,at,offset,amount,until,known,minutes,note
p1,bolus,2024-01-13 08:00,60,"2,5",,,,
p1,bolus,2024-01-13 08:00,60,2.5,,,,
p1,bolus,2024-01-13 09:00,60,-1,,,,
p1,bolus,2024-01-13 10:00,60,0,,,,
p1,bolus,2024-01-13 11:00,,1,,,,
p1,bolus,2024-01-13T11:00:00Z,30,1,2024-01-13 14:00,2024-01-15 00:00,,
p1,bolus,2024-01-13 12:00,60,1,2024-01-13 11:59,,,
p1,bolus,2024-01-13 12:30,60,1,,soon,,
p1,rate,2024-01-13 08:00,60,0.5,,,30,
p1,rate,2024-01-13 08:00,60,0.7,,,45,
p1,food,2024-01-13 08:00,60,30,,,,Lunch
p1,food,2024-01-13 08:00,60,12,,,,Lunch
p1,food,2024-01-13 08:00,60,12,,,,LUNCH
p1,food,2024-01-13 09:00,60,0,,,,
p1,nap,2024-01-13 09:00,60,0,,,,
"""


@pytest.fixture(scope="module")
def clinic(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clinic")
    root = write(
        folder / "raw",
        {
            "cgm.csv": CGM,
            "cgm_open.csv": "who,day,clock,glucose,unit\np3,1/2/2024,0:00,100,a\np3,2/3/2024,0:00,100,a\n",
            "cgm_us.csv": "who,day,clock,glucose,unit\np4,1/25/2024,0:00,100,a\np4,2/3/2024,0:00,100,a\n",
            "doses.csv": DOSES,
            "people.csv": "who,gender,born\np1,2,1970\np1,1,1980\np5,M,\np6,?,1950\np7,,19x\n",
        },
    )
    config = run_config((mapping_file(folder, CLINIC), root))
    sources.check(config)
    got = ingest(spark, config, KEY)
    yield got
    got.release()


def table(df: DataFrame, *columns: str) -> list[tuple]:
    return sorted((tuple(r) for r in df.select(*columns).collect()), key=str)


def test_every_bad_record_is_quarantined_with_its_reason_and_line(clinic):
    cgm, bolus, people = "clinic.cgm", "clinic.doses.bolus", "clinic.people"
    expected = {
        (cgm, 7, "out_of_range"),
        (cgm, 8, "out_of_range"),
        (cgm, 9, "unparsable_time"),
        (cgm, 10, "nonexistent_local_time"),
        (cgm, 12, "missing_value"),
        (cgm, 13, "unparsable_value"),
        (cgm, 14, "unknown_unit"),
        (cgm, 15, "missing_patient"),
        (cgm, 16, "missing_time"),
        (cgm, 17, "implausible_time"),
        (cgm, 19, "malformed_row"),
        *[(cgm, 20 + k, "unit_contradicts_values") for k in range(6)],
        (cgm, 2, "ambiguous_date"),
        (cgm, 3, "ambiguous_date"),
        (bolus, 4, "negative_amount"),
        (bolus, 5, "out_of_range"),
        (bolus, 6, "unparsable_offset"),
        (bolus, 8, "unparsable_end"),
        (bolus, 9, "unparsable_available_at"),
        (people, 5, "unknown_sex"),
        (people, 6, "unparsable_birth_date"),
    }
    assert reasons(clinic) == Counter(expected)


def test_records_are_conserved_per_source(clinic):
    assert counts(clinic) == {
        "clinic.cgm": (28, 7, 2, 19),
        "clinic.doses": (0, 0, 0, 0),
        "clinic.doses.bolus": (8, 2, 1, 5),
        "clinic.doses.rate": (2, 1, 1, 0),
        "clinic.doses.food": (4, 3, 1, 0),
        "clinic.people": (5, 2, 1, 2),
    }
    files = {r.source: (r.files, r.rows_ignored) for r in clinic.counts.collect()}
    assert files["clinic.cgm"] == (3, 0) and files["clinic.doses"] == (1, 1) and files["clinic.doses.food"] == (1, 0)


def test_observations_in_canonical_units_utc_and_flags(clinic):
    series = F.array(F.lit("warm_up"), F.lit("gap"))  # flags of a series are tested in test_quality
    glucose = clinic.observations.filter("signal = 'glucose'").withColumn("quality", F.array_except("quality", series))
    got = table(glucose, "patient_id", "time", "value", "line", "quality", "utc_offset_minutes")
    day = datetime(2024, 1, 13)
    assert got == sorted(
        [
            (id_of("p1"), day, 100.0, 2, [], 0),
            (id_of("p1"), day + timedelta(minutes=5), pytest.approx(99.0858), 3, [], 0),
            (id_of("p1"), day + timedelta(minutes=10), 110.0, 5, ["conflict"], 0),
            (id_of("p1"), day + timedelta(minutes=55), 39.0, 18, ["saturated"], 0),
            (id_of("p1"), datetime(2024, 10, 27, 0, 30), 100.0, 11, ["ambiguous_local_time"], 60),
            (id_of("p4"), datetime(2024, 1, 25), 100.0, 2, [], 0),
            (id_of("p4"), datetime(2024, 2, 3), 100.0, 3, [], 0),
        ],
        key=str,
    )


def test_exposures_with_ends_labels_and_the_rule_for_each_kind(clinic):
    got = table(clinic.exposures, "agent", "kind", "start", "end", "amount", "label", "line", "quality", "available_at")
    seven = datetime(2024, 1, 13, 7)
    assert got == sorted(
        [
            ("insulin_bolus", "dose", seven, None, 2.5, None, 2, [], seven),  # decimal comma; the next line repeats it
            (
                "insulin_bolus",
                "dose",
                datetime(2024, 1, 13, 11),
                datetime(2024, 1, 13, 13, 30),
                1.0,
                None,
                7,
                [],
                datetime(2024, 1, 14, 23, 30),
            ),
            ("insulin_basal", "rate", seven, seven + timedelta(minutes=45), 0.7, None, 11, ["conflict"], seven),  # last line wins
            ("carbohydrate", "dose", seven, None, 30.0, "lunch", 12, ["same_instant"], seven),  # foods add up
            ("carbohydrate", "dose", seven, None, 12.0, "lunch", 13, ["same_instant"], seven),
            ("carbohydrate", "dose", datetime(2024, 1, 13, 8), None, 0.0, None, 15, [], datetime(2024, 1, 13, 8)),
        ],
        key=str,
    )


def test_everybody_seen_is_a_patient(clinic):
    got = {r.patient_id: (r.sex, r.birth_date, tuple(r.sources)) for r in clinic.patients.collect()}
    assert got == {
        id_of("p1"): (
            "female",
            date(1970, 7, 1),
            ("clinic.cgm", "clinic.doses.bolus", "clinic.doses.food", "clinic.doses.rate", "clinic.people"),
        ),
        id_of("p2"): (None, None, ("clinic.cgm",)),
        id_of("p3"): (None, None, ("clinic.cgm",)),
        id_of("p4"): (None, None, ("clinic.cgm",)),
        id_of("p5"): ("male", None, ("clinic.people",)),
        id_of("p6"): (None, None, ("clinic.people",)),
        id_of("p7"): (None, None, ("clinic.people",)),
    }


def test_quarantine_is_verbatim_but_for_the_patient_and_says_what_was_expected(clinic):
    rows = {(r.source, r.line): r for r in clinic.quarantine.filter("reason != 'ambiguous_date'").collect()}
    row = rows["clinic.cgm", 8]
    assert json.loads(row.record) == {"who": id_of("p1"), "day": "13/1/2024", "clock": "0:20", "glucose": "2000", "unit": "a"}
    assert row.detail == "column glucose: from 20 to 600 mg/dL"
    assert json.loads(rows["clinic.cgm", 19].record) == {"fields": [id_of("p1"), "13/1/2024", "1:00", "1", "2", "3"]}
    assert all(r.detail and "p1" not in r.record.replace(id_of("p1"), "") for r in rows.values())


def test_no_identifier_and_no_path_is_in_the_plan(clinic, spark):
    frames = (clinic.observations, clinic.exposures, clinic.quarantine, clinic.patients)
    plans = "".join(f._jdf.queryExecution().toString() for f in frames)
    assert "p1" not in plans and "cgm.csv" not in plans and KEY.decode() not in plans


# --- errors before the work starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, expected",
    [
        (
            lambda m: m["files"][1]["entries"][0]["value"].update(unit="furlong"),
            ConfigError,
            "unknown unit 'furlong' for insulin_bolus",
        ),
        (lambda m: m["files"][0]["entries"][0].update(observation="glucos"), ConfigError, "unknown signal 'glucos'"),
        (lambda m: m["files"][1]["entries"][0].update(kind="rate"), ConfigError, "insulin_bolus has no kind 'rate'"),
        (lambda m: m["files"][1]["entries"][0].update(labl="x"), ConfigError, "labl"),
        (lambda m: m["files"][1].update(glob="dose.csv"), DataError, "no file matches dose.csv"),
        (
            lambda m: m["files"][1]["entries"][2].update(label="notes"),
            DataError,
            "no file has a column 'notes'; did you mean 'note'",
        ),
    ],
)
def test_what_can_be_known_before_is_said_before(tmp_path, change, error, expected):
    mapping = yaml.safe_load(yaml.safe_dump(CLINIC))
    change(mapping)
    root = write(tmp_path / "raw", {"cgm.csv": CGM, "doses.csv": DOSES, "people.csv": "who,gender,born\n"})
    with pytest.raises(error) as e:
        sources.check(run_config((mapping_file(tmp_path, mapping), root)))
    assert expected in str(e.value)


def test_two_sources_of_one_name_are_refused(tmp_path):
    path = mapping_file(tmp_path, CLINIC)
    with pytest.raises(ConfigError, match="both named 'clinic'"):
        sources.check(run_config((path, tmp_path), (path, tmp_path)))


def test_a_source_without_any_record_is_an_error(spark, tmp_path):
    one = {"name": "clinic", "files": [CLINIC["files"][2]]}
    root = write(tmp_path / "raw", {"people.csv": "who,gender,born\n"})
    with pytest.raises(DataError, match="source clinic: no records in 1 files"):
        ingest(spark, run_config((mapping_file(tmp_path, one), root)), KEY)


def test_a_lost_record_is_an_error():
    count = {"source": "s", "rows_read": 5, "accepted": 3, "duplicates": 1, "quarantined": 1}
    check_conservation([count])
    with pytest.raises(DataError, match="s: records were lost: 5 read, 2 accepted"):
        check_conservation([count | {"accepted": 2}])


def test_the_fingerprint_changes_with_files_mapping_and_key(tmp_path):
    root = write(tmp_path / "raw", {"cgm.csv": CGM, "doses.csv": DOSES, "people.csv": "who,gender,born\n"})
    config = run_config((mapping_file(tmp_path, CLINIC), root))
    seen = {sources.fingerprint(config, KEY), sources.fingerprint(config, KEY)}
    assert len(seen) == 1
    seen.add(sources.fingerprint(config, KEY + b"x"))
    (root / "people.csv").write_text("who,gender,born\np1,1,1990\n")
    seen.add(sources.fingerprint(config, KEY))
    mapping_file(tmp_path, {**CLINIC, "namespace": "other"})
    assert len(seen | {sources.fingerprint(config, KEY)}) == 4


def test_priority_of_sources_settles_a_conflict(spark, tmp_path):
    def shape(name):
        return {
            "name": name,
            "files": [
                {
                    "name": "all",
                    "glob": f"{name}.csv",
                    "format": "csv",
                    "patient": {"column": "who"},
                    "time": {"column": "at", "zone": "UTC"},
                    "entries": [
                        {"name": "g", "when": {"what": "g"}, "observation": "glucose", "value": {"column": "v", "unit": "mg/dL"}},
                        {"name": "c", "when": {"what": "c"}, "exposure": "carbohydrate", "value": {"column": "v", "unit": "g"}},
                    ],
                }
            ],
        }

    head, at = "who,what,at,v\n", "2024-01-01 00:00"
    root = write(
        tmp_path / "raw",
        {
            "meter.csv": f"{head}x,g,{at},100\nx,c,{at},30\nx,c,{at},20\n",
            "diary.csv": f"{head}x,g,{at},120\nx,c,{at},40\nx,c,{at},20\n",
        },
    )
    meter, diary = (mapping_file(tmp_path, shape(n)) for n in ("meter", "diary"))
    for first, second, glucose, foods in ((meter, diary, 100.0, [20.0, 30.0]), (diary, meter, 120.0, [20.0, 40.0])):
        got = ingest(spark, run_config((first, root), (second, root)), KEY)
        assert [(r.value, r.quality) for r in got.observations.collect()] == [(glucose, ["conflict", "warm_up"])]
        assert sorted(r.amount for r in got.exposures.collect()) == foods
        assert sum(d for _, _, d, _ in counts(got).values()) == 3
        got.release()


# --- real data ----------------------------------------------------------------------------------------------------------


def shipped(name: str) -> Path:
    return REPO / "conf" / "mappings" / f"{name}.yaml"


def uom_reference(root: Path) -> dict[str, tuple[int, int]]:
    """(records, different instants with a usable amount) of T1D-UOM by plain Python."""
    result: dict[str, list] = {}
    for path in sorted(root.rglob("UoM*.csv")):
        with open(path, encoding="utf-8-sig", newline="") as f:
            for row in csv.DictReader(f):
                time, *rest = row.values()
                kind = row.get("insulin_kind", path.stem[3:-4])
                result.setdefault(kind, []).append(
                    (
                        path.stem[-4:],
                        time.strip(),
                        row["carbs_g"] if "carbs_g" in row else rest[0],
                        row.get("meal_type", "").lower(),
                    )
                )
    return result


@pytest.mark.realdata
def test_t1d_uom(spark, data):
    config = run_config((shipped("t1d_uom"), data / "t1d_uom_core"))
    sources.check(config)
    got = ingest(spark, config, KEY)
    mine, found = uom_reference(data / "t1d_uom_core"), counts(got)
    names = {"Glucose": "glucose", "R": "basal.rate", "L": "basal.long_acting", "Bolus": "bolus", "Nutrition": "nutrition"}
    assert {n: found[f"t1d_uom.{n}"][0] for n in names.values()} == {names[k]: len(rows) for k, rows in mine.items()}
    assert sum(c[0] for c in found.values()) == 386_624 - 62 + 2  # lines without the headers; two files lack the last line end
    people = {row[0] for rows in mine.values() for row in rows}
    assert len(people) == 17 and {r.patient_id for r in got.patients.collect()} == {id_of(p) for p in people}

    def instants(kind, usable):
        return {
            (who, datetime.strptime(time, "%d/%m/%Y %H:%M"))
            for who, time, amount, _ in mine[kind]
            if amount and usable(float(amount)) and " " in time.strip()
        }

    gap = {t for t in (datetime(2024, 3, 31, 1) + timedelta(minutes=m) for m in range(60))}
    glucose = {(w, t) for w, t in instants("Glucose", lambda v: 20 <= v * 18.0156 <= 600) if t not in gap}
    assert found["t1d_uom.glucose"][1] == len(glucose) == got.observations.count()
    assert found["t1d_uom.basal.rate"][1] == len(instants("R", lambda v: 0 <= v <= 35))
    assert found["t1d_uom.bolus"][1] == len({(w, t) for w, t in instants("Bolus", lambda v: 0 < v <= 100) if t not in gap})
    foods = {
        (w, t, float(a), label)
        for w, t, a, label in mine["Nutrition"]
        if a and len(t) == 16 and datetime.strptime(t, "%d/%m/%Y %H:%M").year < 2100
    }
    assert found["t1d_uom.nutrition"][1] == len(foods)
    got.release()


def tidepool_facts(got) -> dict[str, set]:
    exposures = got.exposures.collect()
    return {
        "glucose": {(r.time, round(r.value, 6)) for r in got.observations.where("signal = 'glucose'").collect()},
        **{
            a: {(r.start, r.end, round(r.amount, 6)) for r in exposures if r.agent == a}
            for a in ("insulin_basal", "insulin_bolus", "carbohydrate")
        },
    }


@pytest.mark.realdata
def test_tidepool_json_and_csv_tell_the_same(spark, data, tmp_path):
    facts = []
    for kind in ("json", "csv"):
        mapping = yaml.safe_load(shipped(f"tidepool_{kind}").read_text())
        mapping["files"][0]["glob"] = f"example-from-j-jellyfish.{kind}"
        config = run_config((mapping_file(tmp_path, mapping), data / "tidepool_jellyfish"))
        sources.check(config)
        got = ingest(spark, config, KEY)
        facts.append(tidepool_facts(got))
        found, offsets = counts(got), {r.utc_offset_minutes for r in got.observations.collect()}
        assert offsets == {-480} and [r.patient_id for r in got.patients.collect()] == [id_of("example-from-j-jellyfish")]
        assert found[f"tidepool_{kind}.upload.basal"][0] + found[f"tidepool_{kind}.upload.suspend"][0] == 498
        got.release()
    raw = json.loads((data / "tidepool_jellyfish" / "example-from-j-jellyfish.json").read_text())
    values = {
        (datetime.fromisoformat(r["time"]).astimezone(UTC).replace(tzinfo=None), round(r["value"] * 18.0156, 6))
        for r in raw
        if r["type"] == "cbg" and r.get("value")
    }
    in_json, in_csv = facts  # the JSON sample has lost 306 readings and 26 meals that the CSV sample still has
    assert in_json["glucose"] == values and len(values) == 976
    assert in_json["glucose"] < in_csv["glucose"] and in_json["carbohydrate"] < in_csv["carbohydrate"]
    assert all(in_json[a] == in_csv[a] and len(in_csv[a]) >= 200 for a in ("insulin_basal", "insulin_bolus"))
    assert sum(a for *_, a in in_json["carbohydrate"]) == sum(r["carbInput"] for r in raw if r.get("carbInput"))


@pytest.mark.realdata
def test_dexcom_clarity(spark, data):
    got = ingest(spark, run_config((shipped("dexcom_clarity"), data / "dexcom_clarity_sample")), KEY)
    assert counts(got)["dexcom_clarity.export.egv"] == (2148, 2148, 0, 0)
    first = got.observations.orderBy("time").first()
    assert (first.time, first.value, first.line) == (datetime(2016, 10, 24, 11, 24, 17), 103.0, 13)
    assert {r.source: r.rows_ignored for r in got.counts.collect()}["dexcom_clarity.export"] == 11
    got.release()
