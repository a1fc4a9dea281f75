"""The files: same bits every time, shapes of the real exports, good rows untouched by the planted ones."""

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from twinlib.config import GenerateConfig
from twinlib.errors import ConfigError, DataError
from twinlib.synthetic import generate
from twinlib.synthetic.dirt import FAULTS

SETTINGS = dict(patients=40, days=3)


def digests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "dirty"
    assert generate(GenerateConfig(root=str(root), **SETTINGS), 1) is True
    return root


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "clean"
    generate(GenerateConfig(root=str(root), dirty=False, **SETTINGS), 1)
    return root


def table(root: Path, name: str) -> list[dict]:
    return pq.read_table(root / "truth" / f"{name}.parquet").to_pylist()


def rows(path: Path) -> list[str]:
    """Lines of a CSV file, or records of a JSON file, as texts."""
    if path.suffix == ".csv":
        return path.read_bytes().decode("utf-8-sig").split("\r\n")[:-1]
    return [json.dumps(r, sort_keys=True) for r in json.loads(path.read_text())]


def test_same_seed_same_bits(root, tmp_path):
    generate(GenerateConfig(root=str(tmp_path / "again"), **SETTINGS), 1)
    assert digests(tmp_path / "again") == digests(root)
    generate(GenerateConfig(root=str(tmp_path / "other"), **SETTINGS), 2)
    assert digests(tmp_path / "other")["tidepool/TP00001.json"] != digests(root)["tidepool/TP00001.json"]


def test_more_patients_leave_the_others_alone(root, tmp_path):
    generate(GenerateConfig(root=str(tmp_path / "more"), patients=50, days=3), 1)
    more, fewer = digests(tmp_path / "more"), digests(root)
    files = [f for f in fewer if f.startswith(("t1d_uom/", "tidepool/"))]
    assert len(files) > 80 and all(more[f] == fewer[f] for f in files)


def test_it_is_made_once_and_again_when_settings_change(root, tmp_path):
    config = GenerateConfig(root=str(tmp_path / "c"), patients=4, days=1)
    assert generate(config, 1) is True
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*")}
    assert generate(config, 1) is False
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*")} == before
    assert generate(config.model_copy(update={"patients": 2}), 1) is True
    assert len((tmp_path / "c" / "patients.csv").read_text().splitlines()) == 3
    assert not (tmp_path / "c" / "tidepool" / "TP00003.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_a_killed_run_is_done_again(tmp_path, monkeypatch):
    config = GenerateConfig(root=str(tmp_path / "c"), patients=2, days=1)
    with monkeypatch.context() as m:
        m.setattr(sys.modules["twinlib.synthetic.generate"], "_write_truth", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(config, 1)
    assert not (tmp_path / "c").exists()
    assert generate(config, 1) is True and (tmp_path / "c" / "manifest.json").exists()


def test_foreign_files_are_never_touched(tmp_path):
    (tmp_path / "mine.csv").write_text("precious")
    with pytest.raises(DataError, match="no synthetic cohort"):
        generate(GenerateConfig(root=str(tmp_path), patients=2, days=1), 1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


def test_a_bad_start_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="generate.start: '05/01/2026' is not a date, expected YYYY-MM-DD"):
        generate(GenerateConfig(root=str(tmp_path / "c"), start="05/01/2026"), 1)


def test_planted_rows_stand_where_the_truth_says_and_good_rows_are_untouched(root, clean):
    planted = table(root, "planted")
    assert set(FAULTS) == {p["fault"] for p in planted} and table(clean, "planted") == []
    by_file = {}
    for p in planted:
        by_file.setdefault(p["file"], {})[p["line"]] = p["fault"]
    files = [p.relative_to(clean) for p in clean.rglob("*") if p.suffix in (".csv", ".json") and p.name != "manifest.json"]
    assert set(by_file) <= {str(f) for f in files}
    for file in files:
        bad, good = by_file.get(str(file), {}), rows(clean / file)
        found = rows(root / file)
        assert len(found) == len(good) + len(bad)
        assert [r for n, r in enumerate(found, 1) if n not in bad] == good, "good rows altered"
        for n, fault in bad.items():
            assert (found[n - 1] in good) == (fault == "exact_duplicate")


def test_each_fault_is_what_it_says(root):
    lines = {f: rows(root / f) for f in {p["file"] for p in table(root, "planted")}}
    for p in table(root, "planted"):
        text = lines[p["file"]][p["line"] - 1]
        if p["file"].endswith(".json"):
            record = json.loads(text)
            key = {"cbg": "value", "basal": "rate", "bolus": "normal", "wizard": "carbInput"}[record["type"]]
            time, value, fields = record["time"], record[key], len(record)
        else:
            header, fields = lines[p["file"]][0].split(","), len(text.split(","))
            cells = dict(zip(header, text.split(",")))
            time = text.split(",")[0]
            value = cells.get("value", cells.get("basal_dose", cells.get("bolus_dose", cells.get("carbs_g"))))
            assert (fields > len(header)) == (p["fault"] == "malformed_row")
        fault = p["fault"]
        intake = "Nutrition" in p["file"] or '"wizard"' in text
        assert not (intake and fault == "conflicting_duplicate"), "two foods at one instant add up"
        assert ("13" in time and "25:61" in time) == (fault == "unparsable_time")
        assert (value in (None, "")) == (fault == "missing_value")
        assert (value == "HIGH") == (fault == "text_in_number")
        if value not in (None, "", "HIGH"):
            assert (float(value) < 0) == (fault == "negative_amount")
            assert (float(value) == 0) == (fault == "glucose_zero") and (float(value) == 2000) == (fault == "glucose_2000")


@pytest.mark.realdata
def test_headers_are_those_of_the_real_export(clean, data):
    folders = ("Glucose Data", "Insulin Data/Basal Data", "Insulin Data/Bolus Data", "Nutrition Data")
    for folder in folders:
        ours = {rows(p)[0].rstrip(",") for p in (clean / "t1d_uom" / folder).glob("*.csv")}
        texts = [p.read_bytes().decode("utf-8-sig") for p in (data / "t1d_uom_core" / folder).glob("*.csv")]
        real = {text.splitlines()[0].rstrip(",") for text in texts}
        assert ours == real and len(ours) == 1
    real = {}
    for r in json.loads((data / "tidepool_jellyfish" / "example-from-j-jellyfish.json").read_text()):
        real.setdefault(r["type"], set()).update(r)
    real["wizard"].add("carbInput")
    for path in (clean / "tidepool").glob("*.json"):
        for r in json.loads(path.read_text()):
            assert set(r) <= real[r["type"]]


def test_the_register_and_the_special_people(clean):
    register = list(csv.DictReader((clean / "patients.csv").open()))
    assert len({r["patient"] for r in register}) == 40
    assert all(45 <= float(r["body_weight_kg"]) <= 110 and r["weighed_on"] < "2026-01-05" for r in register)
    glucose = {p.stem[len("UoMGlucose"):] for p in clean.glob("t1d_uom/Glucose Data/*")}
    bolus = {p.stem[len("UoMBolus"):] for p in clean.glob("t1d_uom/Insulin Data/Bolus Data/*")}
    nutrition = {p.stem[len("UoMNutrition"):] for p in clean.glob("t1d_uom/Nutrition Data/*")}
    tidepool = {p.stem for p in (clean / "tidepool").glob("*")}
    assert {r["patient"] for r in register} - glucose - tidepool == {"TP00007"}  # no records
    assert glucose - bolus == {"10006", "10008"} and "10006" in nutrition and "10008" not in nutrition
    single = Counter(r["type"] for r in json.loads((clean / "tidepool" / "TP00005.json").read_text()))
    assert single["cbg"] == 1 and single["bolus"] > 3
    truth = table(clean, "parameters")
    assert {t["patient"] for t in truth} == {r["patient"] for r in register} and len(truth) == 40 * 8


def test_readings_are_five_minutes_apart_with_gaps(clean):
    shares = []
    for path in (clean / "tidepool").glob("*.json"):
        records = json.loads(path.read_text())
        times = np.array([r["time"][:19] for r in records if r["type"] == "cbg"], "datetime64[s]")
        if len(times) > 1:
            steps = np.diff(times).astype(int)
            assert steps.min() == 300 and (steps % 300 == 0).all()
            shares.append(1 - len(times) / (3 * 288))
        offsets = {r["timezoneOffset"] for r in records}
        assert len(offsets) == 1
    assert 0.005 < np.mean(shares) < 0.1 and min(shares) > 0


def test_the_job_says_what_it_did_and_what_is_wrong(tmp_path):
    job = Path(__file__).resolve().parents[2] / "jobs" / "generate.py"
    command = [sys.executable, str(job), "--config", str(tmp_path / "c.yaml")]
    run = lambda: subprocess.run(command, capture_output=True, text=True)  # noqa: E731
    base = f"name: demo\noutput: {tmp_path}/out\npseudonym_key: {{env: KEY}}\nsources: [{{mapping: m.yaml, root: r}}]\n"
    (tmp_path / "c.yaml").write_text(base)
    r = run()
    assert r.returncode == 2 and "generate: there is no such section" in r.stderr and "Traceback" not in r.stderr
    (tmp_path / "c.yaml").write_text(base + f"generate: {{root: {tmp_path}/raw, patients: 2, days: 1}}\n")
    assert "2 patients, 1 days, written" in run().stdout
    assert "there already" in run().stdout
