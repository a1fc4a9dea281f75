"""The main job on real data: all 17 participants of T1D-UOM get a row, and no record is lost."""

import numpy as np
import pytest
import yaml

from twinlib.stages import Night, Plan
from twinlib.tables import schemas

from .small import REPO

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

LINES = {"t1d_uom.glucose": 356_146, "t1d_uom.bolus": 5_660, "t1d_uom.nutrition": 4_351}  # of the data set's own README


@pytest.fixture(scope="module")
def run(spark, data, tmp_path_factory) -> Night:
    folder = tmp_path_factory.mktemp("t1d_uom")
    config = yaml.safe_load((REPO / "conf" / "t1d_uom.yaml").read_text())
    config["output"] = str(folder)
    config["pseudonym_key"] = {"file": str(REPO / "conf" / "demo.key")}
    config["sources"] = [{"mapping": str(REPO / "conf" / "mappings" / "t1d_uom.yaml"), "root": str(data / "t1d_uom_core")}]
    config["simulate"]["scenarios"] = str(REPO / "conf" / "scenarios.yaml")
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    night = Night(Plan.of(folder / "run.yaml"), spark)
    night.run()
    return night


def test_records_are_conserved(run, data):
    counts = {r.source: r for r in run.storage.read(schemas.INGEST_COUNTS).collect()}
    assert all(r.rows_read == r.accepted + r.duplicates + r.quarantined for r in counts.values())
    assert {s: counts[s].rows_read for s in LINES} == LINES
    basal = sum(r.rows_read for s, r in counts.items() if s.startswith("t1d_uom.basal"))
    files = list((data / "t1d_uom_core" / "Insulin Data" / "Basal Data").glob("*.csv"))
    assert basal == sum(len([x for x in f.read_text("utf-8-sig").splitlines()[1:] if x.strip(",")]) for f in files)
    stored = {t.name: run.storage.read(t).count() for t in (schemas.OBSERVATIONS, schemas.EXPOSURES, schemas.QUARANTINE)}
    assert stored["observations"] == counts["t1d_uom.glucose"].accepted
    assert stored["observations"] + stored["exposures"] == sum(r.accepted for r in counts.values())
    assert stored["quarantine"] == sum(r.quarantined for r in counts.values())


def test_all_participants_have_a_twin_or_a_reason(run):
    twins = run.storage.read(schemas.TWINS).toPandas()
    assert twins.patient_id.nunique() == 17
    assert twins.reason[twins.status != "converged"].notna().all()
    ready = twins[twins.status != "insufficient_data"]
    assert len(ready) > 80 and (ready.status == "converged").mean() > 0.99
    fitted = twins[twins.status == "converged"]
    assert fitted.patient_id.nunique() == 15
    assert fitted.fit_mard_percent.median() < 5 and fitted.numerical_error.max() < 0.1


def test_outcomes_are_those_of_the_readings(run):
    """Time in range of one episode, counted from `observations` by hand."""
    ok = run.storage.read(schemas.OUTCOMES).where("status = 'ok' AND outcome = 'mean_glucose' AND scenario = 'as_is'").toPandas()
    assert ok.patient_id.nunique() >= 14 and np.all(ok.effect_mean == 0)
    row = ok.sort_values(["patient_id", "episode"]).iloc[0]
    line = run.storage.read(schemas.TIMELINES).where(f"patient_id = '{row.patient_id}' AND episode = '{row.episode}'").first()
    glucose = run.storage.read(schemas.OBSERVATIONS).where(f"patient_id = '{row.patient_id}' AND signal = 'glucose'").toPandas()
    minutes = (glucose.time - np.datetime64(line.start.replace(tzinfo=None))).dt.total_seconds() / 60
    inside = glucose.value[(minutes >= 0) & (minutes < line.minutes)]
    assert row.factual == pytest.approx(inside.mean(), rel=0.01)
