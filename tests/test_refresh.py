"""The main job on a small synthetic cohort: what it writes, that it does only what has changed, and that errors are clear."""

import io
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F
from rich.console import Console
from typer.testing import CliRunner

from twinlib.errors import ConfigError, DataError
from twinlib.fusion import reading
from twinlib.report.summary import summarise
from twinlib.stages import Night
from twinlib.synthetic.recovery import recovery
from twinlib.tables import schemas

from .small import configured, night


def rows(run: Night, table) -> dict:
    """All rows by key."""
    return {tuple(r[k] for k in table.key): r for r in run.storage.read(table).collect()}


def statuses(run: Night) -> dict[str, str]:
    """Stage -> status of the last run."""
    found = run.storage.read(schemas.RUNS).where(F.col("run_id") == run.runs.run_id).collect()
    return {r.stage: r.status for r in found}


def test_every_patient_has_a_row_and_records_are_conserved(first):
    counts = rows(first, schemas.INGEST_COUNTS).values()
    assert all(c.rows_read == c.accepted + c.duplicates + c.quarantined for c in counts)
    raw = Path(first.config.generate.root)
    planted = pq.read_table(raw / "truth" / "planted.parquet").to_pylist()
    assert sum(c.duplicates + c.quarantined for c in counts) == len(planted) > 10
    quarantined = {(r.line, r.reason) for r in rows(first, schemas.QUARANTINE).values()}
    assert {line for line, _ in quarantined} <= {p["line"] for p in planted}
    assert {"unparsable_time", "out_of_range", "negative_amount", "malformed_row"} <= {reason for _, reason in quarantined}
    twins = rows(first, schemas.TWINS)
    assert {p for p, _, _ in twins} == {p for (p,) in rows(first, schemas.PATIENTS)} and len(twins) == 12
    assert {(t.status, t.reason) for t in twins.values()} == {
        ("converged", None), ("insufficient_data", "few_readings"), ("insufficient_data", "no_insulin_bolus"), ("insufficient_data", "no_records")
    }
    assert set(statuses(first).values()) == {"done"}


def test_raw_identifiers_are_nowhere_in_the_tables(first):
    ids = set(pq.read_table(Path(first.config.generate.root) / "truth" / "parameters.parquet")["patient"].to_pylist())
    for table in (schemas.PATIENTS, schemas.QUARANTINE, schemas.TWINS, schemas.EXPOSURES):
        df = first.storage.read(table)
        words = [f.name for f in df.schema.fields if f.dataType.simpleString() in ("string", "array<string>")]  # digits of numbers are no ids
        text = str([r.asDict() for r in df.select(words).limit(2000).collect()])
        assert not [i for i in ids if i in text]


def test_the_truth_is_recovered(first):
    found = {r.parameter: r for r in recovery(first.config, first.storage.read(schemas.TWIN_PARAMETERS))}
    assert len(found) == 8 and all(r.twins == 8 for r in found.values())
    assert sum(r.coverage * r.twins for r in found.values()) / 64 > 0.7  # 64 intervals of 90 %
    assert found["insulin_sensitivity"].correlation > 0.9


def test_effects_are_zero_without_a_change_and_have_the_right_sign(first):
    outcomes = [r for r in rows(first, schemas.OUTCOMES).values() if r.status == "ok"]
    still = [r for r in outcomes if r.scenario == "as_is"]
    assert still and all(r.effect_mean == 0 and r.effect_q05 == 0 and r.effect_q95 == 0 and r.counterfactual_mean == r.factual for r in still)
    mean = {(r.scenario, r.patient_id): r.effect_mean for r in outcomes if r.outcome == "mean_glucose"}
    assert all(v > 0 for (s, _), v in mean.items() if s in ("bolus_70", "basal_80", "no_breakfast_bolus"))
    assert all(v < 0 for (s, _), v in mean.items() if s in ("bolus_120", "basal_120", "carbohydrate_70"))
    effects = rows(first, schemas.COHORT_EFFECTS)
    assert len([k for k in effects if k[1] == "all"]) == 2 * 8 * 15 and {k[1] for k in effects} == {"all", "sex=female", "sex=male"}
    everyone = effects["everyone", "all", "bolus_70", "mean_glucose"]
    assert everyone.n_patients == 8 and everyone.n_matched == 12 and everyone.effect_q05 < everyone.effect_mean < everyone.effect_q95
    nobody = effects["nobody", "all", "bolus_70", "tir"]
    assert (nobody.n_matched, nobody.n_patients, nobody.effect_mean) == (0, 0, None)


def test_each_patient_is_advised_and_the_cohort_gains_what_they_gain(first):
    advised = [r for r in rows(first, schemas.RECOMMENDATIONS).values()]
    assert len(advised) == 8 and {r.status for r in advised} <= {"change", "no_change"}
    for r in advised:
        assert (r.scenario is not None) == (r.status == "change") and r.n_safe <= r.n_policies
        assert r.status == "no_change" or (r.probability_beats_current >= 0.9 and r.gain_mean > 0 and r.scenario == r.best)
    gains = rows(first, schemas.COHORT_POLICIES)["everyone", "all", "doses"]
    expected = sum(r.gain_mean for r in advised if r.status == "change") / 8
    assert gains.n_patients == 8 and gains.n_changed == sum(r.status == "change" for r in advised)
    assert gains.gain_personalised_mean == pytest.approx(expected)
    assert gains.gain_of_personalising_mean == pytest.approx(gains.gain_personalised_mean - gains.gain_one_size_mean)


def test_the_summary_tells_what_happened(first):
    console = Console(record=True, width=140, file=io.StringIO())
    summarise(first, console)
    text = console.export_text()
    for part in ("12 patients, 12 episodes of 7 days", "Refused records", "unparsable_time", "converged", "few_readings", "bolus_70",
                 "Recovery of the known truth", "insulin_sensitivity", f"Tables: {first.config.tables}", "jobs/query.py"):
        assert part in text, part


def test_a_second_run_does_nothing_and_a_changed_patient_is_the_only_one_done_again(first, spark):
    path = Path(first.config.output) / "run.yaml"
    before = rows(first, schemas.TWINS)
    again = night(path, spark)
    assert set(statuses(again).values()) == {"unchanged"}

    glucose = sorted((Path(first.config.generate.root) / "t1d_uom" / "Glucose Data").glob("*.csv"))[0]
    with glucose.open("ab") as file:
        file.write(b"07/01/2026 03:02,5.6\r\n")
    changed = night(path, spark)
    counts = {r.stage: r.counts for r in changed.storage.read(schemas.RUNS).where(F.col("run_id") == changed.runs.run_id).collect()}
    assert counts["fit"]["episodes_fitted"] == 1 and counts["simulate"]["episodes_simulated"] == 1
    after = rows(changed, schemas.TWINS)
    differing = [k for k in after if after[k] != before[k]]
    assert len(differing) == 1 and after[differing[0]].timeline_hash != before[differing[0]].timeline_hash


def test_results_are_the_same_bits_whatever_the_partitions_and_order(first, spark, tmp_path, monkeypatch):
    """A rebuild from nothing in other partitions and buckets, several parts to each, equals the tables that grew night by night."""
    shutil.copytree(first.config.generate.root, tmp_path / "raw")
    monkeypatch.setattr(Night, "partitions", 1)
    monkeypatch.setattr(reading, "RECORDS", 1000)
    path = configured(tmp_path, storage={"buckets": 3}, fit={"batch_rows": 5})
    spark.conf.set("spark.sql.shuffle.partitions", 5)
    try:
        other = night(path, spark)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", 2)
    assert len(list(other.storage.folder.glob("observations/v*/bucket=0/part-*.parquet"))) > 1
    ingested = (schemas.PATIENTS, schemas.OBSERVATIONS, schemas.EXPOSURES, schemas.QUARANTINE, schemas.INGEST_COUNTS)
    for table in (*ingested, schemas.TWINS, schemas.TWIN_PARAMETERS, schemas.OUTCOMES, schemas.RECOMMENDATIONS, schemas.COHORT_POLICIES, schemas.COHORT_EFFECTS):
        assert rows(other, table) == rows(first, table), table.name


@pytest.mark.delta
@pytest.mark.slow
def test_delta_tables_hold_the_same(first, spark, tmp_path):
    shutil.copytree(first.config.generate.root, tmp_path / "raw")
    path = configured(tmp_path, storage={"format": "delta", "buckets": 2})
    other = night(path, spark)
    for table in (schemas.OBSERVATIONS, schemas.TWINS, schemas.OUTCOMES, schemas.COHORT_EFFECTS):
        assert rows(other, table) == rows(first, table), table.name
    assert set(statuses(night(path, spark)).values()) == {"unchanged"}


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"sede": 1}, ConfigError, "run.yaml: sede: Extra inputs are not permitted"),
    ({"storage": {"format": "parket"}}, ConfigError, "storage.format: Input should be 'parquet' or 'delta'"),
    ({"fit": {"model": "glucose"}}, ConfigError, "unknown model 'glucose'; known: biomarker_turnover, glucose_insulin"),
    ({"fit": {"prior_version": "learned-9"}}, ConfigError, "unknown version 'learned-9'"),
    ({"cohorts": [{"name": "a", "where": "tir >"}]}, ConfigError, "cohort a"),
    ({"cohorts": [{"name": "a", "where": "hba1c > 7"}]}, ConfigError, "unknown column hba1c"),
    ({"simulate": {"scenarios": "no.yaml"}}, ConfigError, "no.yaml: cannot be read"),
    ({"episodes": {"days": 0}}, ConfigError, "episodes.days.*: Input should be greater than or equal to 1"),
    ({"episodes": {"days": 7, "require": ["insulin"]}}, ConfigError, "episodes.require: insulin: no input of model glucose_insulin"),
    ({"pseudonym_key": {"env": "TWINLIB_NOT_SET"}, "generate": None}, ConfigError, "TWINLIB_NOT_SET is not set"),
    ({"generate": None}, DataError, "raw"),
])
def test_what_is_wrong_is_said_before_any_work(spark, tmp_path, changes, error, message):
    path = configured(tmp_path, **changes)
    with pytest.raises(error, match=message):
        night(path, spark)


def test_a_job_ends_with_one_line_and_an_exit_code(tmp_path):
    import typer

    from jobs import refresh

    app = typer.Typer()
    app.command()(refresh.main)
    result = CliRunner().invoke(app, ["--config", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2 and result.stderr == f"error: {tmp_path / 'none.yaml'}: cannot be read (No such file or directory)\n"
    assert "Traceback" not in result.output
