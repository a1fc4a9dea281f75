"""Nights over a cohort that changes: what arrives late, is corrected, is deleted or withdrawn, against a rebuild from nothing."""

import json
import random
import shutil
from pathlib import Path

import jsonschema
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F

from twinlib import sources
from twinlib.errors import ConfigError, DataError
from twinlib.forget import candidates, forget
from twinlib.stages import Night, Plan
from twinlib.tables import schemas
from twinlib.tables.runs import Runs

from .small import configured, insert

pytestmark = pytest.mark.slow
DERIVED = (
    schemas.PATIENTS, schemas.OBSERVATIONS, schemas.EXPOSURES, schemas.QUARANTINE, schemas.TIMELINES, schemas.POPULATIONS, schemas.TWINS,
    schemas.TWIN_PARAMETERS, schemas.OUTCOMES, schemas.RECOMMENDATIONS, schemas.COHORT_POLICIES, schemas.COHORT_EFFECTS,
)
TINY = {
    "generate": {"patients": 4, "days": 2, "start": "2026-01-05", "dirty": False},
    "episodes": {"days": 2},
    "checkpoint_episodes": 1,
    "alerts": {"quarantined_share": 0.0, "prior_drift": 100},
}
GLUCOSE = "t1d_uom/Glucose Data/UoMGlucose{}.csv"


def content(night: Night) -> dict[str, list[str]]:
    """Every table as sorted rows, without the numbers of lines in raw files: these move when lines before them go."""
    return {t.name: sorted(map(repr, night.storage.read(t).drop("line").collect())) for t in DERIVED}


def stages(night: Night) -> dict:
    return {r.stage: r for r in night.storage.read(schemas.RUNS).where(F.col("run_id") == night.runs.run_id).collect()}


def without(raw: Path, patient: str) -> None:
    """The raw files as if the patient had never come."""
    for path in raw.rglob(f"*{patient}.*"):
        path.unlink()
    register = raw / "patients.csv"
    register.write_text("".join(line for line in register.read_text().splitlines(keepends=True) if not line.startswith(patient)))


@pytest.fixture(scope="module")
def story(spark, tmp_path_factory):
    """Four nights of one output folder, and the rebuild that they must equal. Notes by the name of what happened."""
    folder = tmp_path_factory.mktemp("story")
    plan = Plan.of(configured(folder / "made", **TINY))
    Night(plan, spark).generate()
    full, raw = folder / "made" / "raw", folder / "grown" / "raw"
    shutil.copytree(full, raw)
    path = configured(folder / "grown", **TINY | {"generate": None})
    late, wrong = (raw / GLUCOSE.format(i) for i in ("10000", "10002"))
    late.write_text("".join(late.read_text().splitlines(keepends=True)[:400]))
    lines = wrong.read_text().splitlines()
    when, value = lines[100].split(",")
    wrong.write_text("\n".join([*lines[:100], f"{when},{float(value) + 0.5:.1f}", *lines[101:]]) + "\n")
    insert(wrong, "06/01/2026 00:02,222")  # is refused
    without(raw, "TP00003")
    notes = {"path": path, "full": full}

    def night(name):
        run = Night(Plan.of(path), spark)
        notes[name] = (run, run.run(), stages(run))
        return run

    notes["plan of the first"] = Night(Plan.of(path), spark).preview()
    first = night("first")
    notes["patients of the first"] = first.storage.read(schemas.PATIENTS).count()
    for name in (GLUCOSE.format("10000"), GLUCOSE.format("10002"), "tidepool/TP00003.json", "patients.csv"):
        shutil.copy(full / name, raw / name)
    without(raw, "TP00001")
    notes["plan of the second"] = Night(Plan.of(path), spark).preview()
    night("second")
    second = night("again")
    key = sources.load_key(second.config.pseudonym_key)
    notes["withdrawn"] = candidates(["10002"], second.config, key)
    run = Night(Plan.of(path), spark)
    notes["forgotten"] = forget(run.storage, notes["withdrawn"], key)
    notes["left of the patient"] = [p for p in folder.glob("grown/**/*.parquet") if "raw" not in p.parts and notes["withdrawn"][0] & texts(p)]
    night("after")
    for patient in ("TP00001", "10002"):
        without(full, patient)
    rebuilt = Night(Plan.of(configured(folder / "made", **TINY | {"generate": None, "checkpoint_episodes": 100})), spark)
    rebuilt.run()
    notes["rebuilt"] = rebuilt
    return notes


def texts(path: Path) -> set[str]:
    """All texts of a Parquet file's flat columns."""
    table = pq.read_table(path, partitioning=None)
    return {v for name in table.column_names if str(table.schema.field(name).type) == "string" for v in table.column(name).to_pylist() if v}


def test_nights_with_late_corrected_deleted_and_forgotten_records_equal_a_rebuild(story):
    grown, rebuilt = content(story["after"][0]), content(story["rebuilt"])
    assert len(grown["patients"]) == 2 and len(grown["outcomes"]) > 100
    for name, rows in rebuilt.items():
        assert grown[name] == rows, name


def test_a_night_does_what_has_changed_and_the_same_night_again_nothing(story):
    assert story["patients of the first"] == 3
    _, _, second = story["second"]
    assert second["fit"].counts["episodes_fitted"] == 3 and second["fit"].counts["patients_changed"] == 4  # one of them is gone
    assert {r.status for r in story["again"][2].values()} == {"unchanged"}
    _, _, after = story["after"]
    assert after["fit"].status == after["simulate"].status == "unchanged"  # ingest ran without the patient, and found the rest as it was


def test_a_dry_run_says_what_would_run_and_how_much(story):
    verdicts = {stage: verdict for stage, verdict, _ in story["plan of the second"]}
    assert verdicts == {"ingest": "run", "fuse": "perhaps", "fit": "perhaps", "simulate": "perhaps", "recommend": "perhaps", "effects": "perhaps"}
    amounts = {stage: amount for stage, _, amount in story["plan of the second"]}
    assert "files" in amounts["ingest"] and amounts["fit"] == "the last time 3 episodes"
    assert {v for _, v, _ in story["plan of the first"]} == {"run", "perhaps"}


def test_a_dry_run_counts_the_work_of_another_setting(story, spark):
    config = configured(story["path"].parent, **TINY | {"generate": None, "fit": {"maximum_iterations": 61}})
    try:
        verdicts = {stage: (verdict, amount) for stage, verdict, amount in Night(Plan.of(config), spark).preview()}
        assert verdicts["fuse"] == ("unchanged", "") and verdicts["fit"] == ("run", "2 episodes of 2 patients")
    finally:
        configured(story["path"].parent, **TINY | {"generate": None})


def test_a_refused_record_above_the_threshold_is_an_alert(story):
    (alert,) = story["first"][1]
    assert (alert.alert, alert.subject) == ("quarantined_share", "t1d_uom") and 0 < alert.value < 0.01
    stored = story["after"][0].storage.read(schemas.ALERTS).collect()
    assert [(a.run_id, a.alert, a.value) for a in stored] == [(story["first"][0].runs.run_id, "quarantined_share", alert.value)]
    assert not story["after"][1]


def test_what_is_forgotten_is_in_no_file_and_stays_out(story):
    assert story["forgotten"]["lines"] == story["forgotten"]["known"] == 1 and story["forgotten"]["rows"] > 500
    assert not story["left of the patient"]
    night = story["after"][0]
    assert list((Path(night.config.output) / "raw").rglob("*10002.csv"))  # the raw files are still there
    (names,) = story["withdrawn"]
    assert not night.storage.read(schemas.PATIENTS).where(F.col("patient_id").isin(list(names))).count()
    (row,) = night.storage.read(schemas.FORGOTTEN).collect()
    assert len(row.tombstone) == 64 and row.tombstone[:32] not in names


def test_who_is_to_be_forgotten_must_be_clear(story):
    config = story["after"][0].config
    with pytest.raises(DataError, match="one identifier or pseudonym per line"):
        candidates([" ", ""], config, b"k" * 16)
    with pytest.raises(ConfigError, match="--namespace: say whose"):
        candidates(["x"], config, b"k" * 16, "elsewhere")


def test_every_stage_tells_what_it_took_and_which_tables_it_left(story, spark):
    night, _, found = story["first"]
    fit = found["fit"].metrics
    assert fit["tasks"] > 0 and fit["task_seconds"] > fit["jvm_cpu_seconds"] > 0 and fit["engine_seconds"] > 0 and fit["skew"] >= 1
    assert found["ingest"].metrics["rows_written"] > 1000
    assert set(found["fit"].table_versions) == {"populations", "twins", "twin_parameters"}
    sequence = [r.sequence for r in night.storage.read(schemas.RUNS).orderBy("sequence").collect()]
    assert sequence == list(range(1, len(sequence) + 1))


def test_the_tables_of_a_run_are_found_by_its_id(story):
    night = story["after"][0]
    runs = Runs(night.storage, night.config)
    versions = runs.tables_of(night.runs.run_id)
    assert set(versions) >= {t.name for t in DERIVED}
    twins = night.storage.read_version(schemas.TWINS, versions["twins"])
    assert sorted(map(repr, twins.collect())) == content(night)["twins"]
    with pytest.raises(Exception, match="is not kept any more"):
        night.storage.read_version(schemas.TWINS, runs.tables_of(story["first"][0].runs.run_id)["twins"])
    with pytest.raises(Exception, match="there is no run 1999"):
        runs.tables_of("1999")


FACETS = {"type": "object", "additionalProperties": {"type": "object", "required": ["_producer", "_schemaURL"]}}
NAMED = {"type": "object", "required": ["namespace", "name"], "properties": {"namespace": {"type": "string"}, "name": {"type": "string"}, "facets": FACETS}}
RUN_EVENT = {  # what the OpenLineage specification (2-0-2) demands of a RunEvent
    "type": "object",
    "required": ["eventType", "eventTime", "run", "job", "producer", "schemaURL"],
    "properties": {
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]}, "eventTime": {"type": "string", "format": "date-time"},
        "run": {"type": "object", "required": ["runId"], "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": FACETS}},
        "job": NAMED, "inputs": {"type": "array", "items": NAMED}, "outputs": {"type": "array", "items": NAMED}, "producer": {"type": "string"},
    },
}


def test_a_run_leaves_its_lineage(story):
    night = story["second"][0]
    lines = (Path(night.config.output) / "lineage" / f"{night.runs.run_id}.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for e in events:
        jsonschema.validate(e, RUN_EVENT, format_checker=jsonschema.FormatChecker())
    kinds = [(e["job"]["name"], e["eventType"]) for e in events]
    assert kinds == [(f"small.{s}", k) for s in ("ingest", "fuse", "fit", "simulate", "recommend", "effects") for k in ("START", "COMPLETE")]
    assert all(a["run"]["runId"] == b["run"]["runId"] for a, b in zip(events[::2], events[1::2]))
    ends = {e["job"]["name"]: e for e in events if e["eventType"] == "COMPLETE"}
    fit = ends["small.fit"]
    assert {Path(d["name"]).name for d in fit["outputs"]} == {"populations", "twins", "twin_parameters"}
    (read,) = fit["inputs"]
    made = [d for d in ends["small.fuse"]["outputs"] if d["name"] == read["name"]]
    assert made[0]["facets"]["version"]["datasetVersion"] == read["facets"]["version"]["datasetVersion"]
    assert len({e["run"]["facets"]["parent"]["run"]["runId"] for e in events}) == 1


def arrived(path: Path, chance: random.Random, nights: int) -> list[str]:
    """The file's text as it stands in each of some nights: every record has come by the last, in any order."""
    if path.suffix == ".json":
        records = json.loads(path.read_text())
        at = [chance.randrange(nights) for _ in records]
        return [json.dumps([r for r, k in zip(records, at) if k <= night]) for night in range(nights)]
    head, *lines = path.read_text(encoding="latin-1").splitlines(keepends=True)
    at = [chance.randrange(nights) for _ in lines]
    return ["".join([head, *(line for line, k in zip(lines, at) if k <= night)]) for night in range(nights)]


def test_records_that_arrive_in_any_order_end_in_the_same_tables(spark, tmp_path):
    tiny = TINY | {"alerts": {"quarantined_share": 1, "failed_fit_share": 1, "prior_drift": 100}}
    whole = Night(Plan.of(configured(tmp_path, **tiny)), spark)
    whole.run()
    expected, raw, found = content(whole), tmp_path / "raw", []
    for seed in (1, 2):
        folder, chance = tmp_path / str(seed), random.Random(seed)
        shutil.copytree(raw, folder / "raw")
        files = [p for p in sorted((folder / "raw").rglob("*")) if p.is_file() and p.parent != folder / "raw"]
        texts = {p: arrived(p, chance, 2) for p in files}
        path = configured(folder, **tiny | {"generate": None})
        for k in range(2):
            for p, text in texts.items():
                p.write_text(text[k], encoding="utf-8" if p.suffix == ".json" else "latin-1")
            night = Night(Plan.of(path), spark)
            night.run()
            found.append(content(night))
        assert found[-1] == expected and found[-2]["twins"] != expected["twins"]
    assert found[0]["twins"] != found[2]["twins"]
