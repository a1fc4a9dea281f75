"""What must never leave the tables, who may read them, and what a configuration must not be able to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinlib.config import CohortConfig, load, read_yaml
from twinlib.errors import ConfigError
from twinlib.sources.pseudonym import pseudonym
from twinlib.whatif.cohorts import Attributes, check

from .small import REPO, configured, insert

PATIENT, BORN, VALUE, REFUSED = "QX7MARKER77", "1931-11-23", "17.3719", "nine-point-nine-marker"


@pytest.mark.parametrize("filter_", [
    "reflect('java.lang.System', 'exit', 1) = 1", "java_method('java.lang.Runtime', 'getRuntime') = 1", "tir > (SELECT 1)",
    "tir IN (SELECT x FROM csv.`/etc/passwd`)", "EXISTS (SELECT 1 FROM text.`/etc/passwd`)", "true; DROP TABLE patients", "input_file_name() = 'x'",
    "tir > 1 /* */ UNION SELECT 1", "current_user() = 'root'", "try_reflect('java.lang.Runtime', 'exec', 'id') = 1", "assert_true(false)",
    "raise_error('x') IS NULL", "tir = (CREATE TABLE x (a INT))", "INSERT INTO patients SELECT 1", "tir > ${HOME}", "secret('a', 'b') = 'x'",
])
def test_a_cohort_can_neither_run_code_nor_read_nor_write(filter_):
    with pytest.raises(ConfigError, match="cohort c"):
        check(CohortConfig(name="c", where=filter_), Attributes())


@pytest.mark.parametrize("text", [
    "!!python/object/apply:os.system ['touch {mark}']", "a: !!python/name:os.system", "a: !!python/object/new:subprocess.Popen [[touch, '{mark}']]",
])
def test_yaml_runs_no_code(tmp_path, text):
    mark, path = tmp_path / "ran", tmp_path / "x.yaml"
    path.write_text(text.format(mark=mark))
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(path)
    assert not mark.exists()


@pytest.mark.parametrize(("key", "value", "fine"), [
    ("spark.hadoop.fs.s3a.secret.key", "abc123", False), ("spark.hadoop.fs.s3a.access.key", "AKIA", False), ("spark.ssl.keyPassword", "x", False),
    ("spark.hadoop.fs.s3a.secret.key", "${A_SECRET}", True), ("spark.hadoop.fs.s3a.secret.key", "${A_SECRET:default}", False),
    ("spark.hadoop.fs.s3a.aws.credentials.provider", "com.amazonaws.auth.InstanceProfileCredentialsProvider", True),
    ("spark.sql.shuffle.partitions", "8", True),
])
def test_secrets_come_from_the_environment(tmp_path, monkeypatch, key, value, fine):
    monkeypatch.setenv("A_SECRET", "hidden")
    path = configured(tmp_path, spark={key: value})
    if fine:
        assert key in load(path).spark
    else:
        with pytest.raises(ConfigError, match="secrets come from the environment") as error:
            load(path)
        assert value not in str(error.value).replace(f"spark.{key}", "")


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """A night, a withdrawal and a night that fails, as a user starts them, over a cohort with planted markers. Everything that was said."""
    from twinlib.synthetic import generate

    folder = tmp_path_factory.mktemp("secret")
    events = folder / "events"
    events.mkdir()
    settings = {
        "spark.master": "local[2]", "spark.sql.shuffle.partitions": 2, "spark.driver.memory": "1g", "spark.eventLog.enabled": True,
        "spark.eventLog.dir": f"file://{events}", "spark.eventLog.compress": False, "spark.eventLog.rolling.enabled": False,
        "spark.sql.debug.maxToStringFields": 1000, "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",
    }
    changes = {"generate": {"patients": 2, "days": 2, "start": "2026-01-05", "dirty": False}, "episodes": {"days": 2}, "spark": settings}
    changes["pseudonym_key"] = {"file": str(folder / "key" / "pseudonym.key"), "create": True}
    path = configured(folder / "out", **changes)
    config = load(path)
    generate(config.generate, config.seed)
    raw = Path(config.generate.root)
    for file in list(raw.rglob("*10000.csv")):
        file.rename(file.with_name(file.name.replace("10000", PATIENT)))
    glucose = next(raw.rglob(f"UoMGlucose{PATIENT}.csv"))
    insert(glucose, f"06/01/2026 12:02,{VALUE}", f"06/01/2026 12:03,{REFUSED}")
    register = raw / "patients.csv"
    lines = register.read_text().splitlines()
    lines[1] = f"{PATIENT},female,{BORN},70.9,2025-09-23"
    register.write_text("\n".join(lines) + "\n")
    path = configured(folder / "out", **changes | {"generate": None})

    def job(name, *arguments, given=""):
        command = [sys.executable, str(REPO / "jobs" / f"{name}.py"), "--config", str(path), *arguments]
        environment = os.environ | {"TWINLIB_LOG": "DEBUG", "NUMBA_CACHE_DIR": str(REPO / "out" / "numba"), "PYTHONPATH": str(REPO)}
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=600, env=environment)
        return done.returncode, done.stdout + done.stderr

    said = {"refresh": job("refresh")}
    key = Path(config.pseudonym_key.file).read_bytes().strip()
    modes = {p: p.stat().st_mode & 0o777 for root in ("out/tables", "out/lineage", "key") for p in (folder / root).rglob("*")}
    said["forget"] = job("forget", given=f"{PATIENT}\n")
    glucose.write_text(glucose.read_text().replace("value", REFUSED, 1))
    next(raw.rglob("*.json")).write_text(f'[{{"type": "{REFUSED}"')
    said["failing"] = job("refresh")
    names = [str(p.relative_to(folder)) for p in folder.rglob("*") if "raw" not in p.relative_to(folder).parts]
    logs = {p.name: p.read_text(errors="replace") for p in [*events.rglob("*"), *(folder / "out" / "lineage").rglob("*")] if p.is_file()}
    return {"said": said, "names": names, "logs": logs, "modes": modes, "pseudonym": pseudonym(key, "", PATIENT), "key": key.decode()}


@pytest.mark.slow
def test_no_identifier_birth_date_or_value_is_in_logs_plans_errors_or_file_names(nights):
    assert nights["said"]["refresh"][0] == 0, nights["said"]["refresh"][1]
    assert nights["said"]["forget"][0] == 0 and "1 patients named, 1 of them known" in nights["said"]["forget"][1]
    assert nights["said"]["failing"][0] == 3, nights["said"]["failing"]
    assert any("SparkListenerSQLExecutionStart" in text for text in nights["logs"].values())  # the plans are among what is searched
    said = {name: text for name, (_, text) in nights["said"].items()}
    for marker in (PATIENT, BORN, VALUE, "312.96", REFUSED, nights["pseudonym"], nights["key"]):
        for name, text in (said | nights["logs"] | {"file names": "\n".join(nights["names"])}).items():
            at = text.find(marker)
            assert at < 0, f"{marker} in {name}: {text[max(0, at - 200) : at + 100]}"


@pytest.mark.slow
def test_tables_lineage_and_key_are_their_owner_s_alone(nights):
    assert len(nights["modes"]) > 50
    assert not [str(p) for p, mode in nights["modes"].items() if mode & 0o077]
