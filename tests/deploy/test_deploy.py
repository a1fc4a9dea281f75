"""What deploy/ holds is parsed, checked against the parts of the published schemas that it uses, and against the jobs that it starts."""

import ast
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.small import REPO

DEPLOY = REPO / "deploy"
TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}


def closed(required=(), **properties) -> dict:
    """An object with these properties and no others: a misspelt key must not pass."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def listed(item: dict) -> dict:
    return {"type": "array", "items": item}


MEMORY = {"type": "string", "pattern": r"^\d+(k|m|g|t)i?$"}
VOLUME = closed(
    ("name",), name=TEXT, configMap=closed(("name",), name=TEXT), secret=closed(("secretName",), secretName=TEXT, defaultMode=NUMBER)
)
POD = {
    "cores": {"type": "integer", "minimum": 1}, "memory": MEMORY, "memoryOverhead": MEMORY, "serviceAccount": TEXT,
    "env": listed(closed(("name", "value"), name=TEXT, value=TEXT)), "envFrom": listed(closed((), secretRef=closed(("name",), name=TEXT))),
    "volumeMounts": listed(closed(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
}
# The parts of sparkoperator.k8s.io/v1beta2 ScheduledSparkApplication that are used.
APPLICATION = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "sparkoperator.k8s.io/v1beta2"}, kind={"const": "ScheduledSparkApplication"}, metadata=closed(("name",), name=TEXT, namespace=TEXT),
    spec=closed(
        ("schedule", "template"), schedule=TEXT, concurrencyPolicy={"enum": ["Allow", "Forbid", "Replace"]}, suspend=FLAG,
        successfulRunHistoryLimit=NUMBER, failedRunHistoryLimit=NUMBER,
        template=closed(
            ("type", "sparkVersion", "driver", "executor"), type={"enum": ["Java", "Scala", "Python", "R"]}, mode={"enum": ["cluster", "client"]},
            pythonVersion={"enum": ["2", "3"]}, sparkVersion=TEXT, image=TEXT, imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
            mainApplicationFile=TEXT, arguments=listed(TEXT), sparkConf={"type": "object", "additionalProperties": TEXT}, volumes=listed(VOLUME),
            restartPolicy=closed(
                (), type={"enum": ["Never", "OnFailure", "Always"]}, onFailureRetries=NUMBER, onFailureRetryInterval={"type": "integer", "minimum": 1},
                onSubmissionFailureRetries=NUMBER, onSubmissionFailureRetryInterval={"type": "integer", "minimum": 1},
            ),
            driver=closed((), **POD), executor=closed((), instances={"type": "integer", "minimum": 1}, **POD),
        ),
    ),
)
CLUSTER = closed(
    ("spark_version", "node_type_id"), spark_version=TEXT, node_type_id=TEXT, num_workers=NUMBER, spark_env_vars={"type": "object", "additionalProperties": TEXT}
)
TASK = closed(
    ("task_key", "spark_python_task"), task_key={"type": "string", "pattern": r"^[\w-]+$"}, job_cluster_key=TEXT, max_retries=NUMBER,
    min_retry_interval_millis=NUMBER, spark_python_task=closed(("python_file",), python_file=TEXT, parameters=listed(TEXT)),
    libraries=listed(closed((), whl=TEXT)),
)
# The parts of a Databricks asset bundle that are used.
BUNDLE = closed(
    ("bundle", "targets", "resources"), bundle=closed(("name",), name=TEXT),
    variables={"type": "object", "additionalProperties": closed((), description=TEXT, default=TEXT)},
    targets={"type": "object", "additionalProperties": closed(
        (), mode={"enum": ["development", "production"]}, default=FLAG, workspace=closed((), root_path=TEXT)
    )},
    resources=closed((), jobs={"type": "object", "additionalProperties": closed(
        ("name", "tasks"), name=TEXT, max_concurrent_runs={"const": 1},
        schedule=closed(("quartz_cron_expression", "timezone_id"), quartz_cron_expression=TEXT, timezone_id=TEXT),
        email_notifications=closed((), on_failure=listed(TEXT)), job_clusters=listed(closed(("job_cluster_key", "new_cluster"), job_cluster_key=TEXT, new_cluster=CLUSTER)),
        tasks=listed(TASK),
    )}),
)


def options_of(job: str) -> set[str]:
    """The options that a job takes."""
    return set(re.findall(r'"(--[\w-]+)"', (REPO / "jobs" / f"{job}.py").read_text())) | {"--config", "--as-of", "--retain-hours"}


def test_kubernetes():
    found = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
    jsonschema.validate(found, APPLICATION)
    spec = found["spec"]
    assert spec["concurrencyPolicy"] == "Forbid" and len(spec["schedule"].split()) == 5
    template = spec["template"]
    volumes = {v["name"] for v in template["volumes"]}
    assert all(m["name"] in volumes for part in ("driver", "executor") for m in template[part]["volumeMounts"])
    assert (REPO / template["mainApplicationFile"].removeprefix("local:///opt/twinlib/")).is_file()
    assert set(template["arguments"][::2]) <= options_of("refresh")


def test_a_misspelt_key_would_not_pass():
    found = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
    found["spec"]["concurencyPolicy"] = found["spec"].pop("concurrencyPolicy")
    with pytest.raises(jsonschema.ValidationError, match="concurencyPolicy"):
        jsonschema.validate(found, APPLICATION)


def test_databricks():
    found = yaml.safe_load((DEPLOY / "databricks" / "databricks.yml").read_text())
    jsonschema.validate(found, BUNDLE)
    for job in found["resources"]["jobs"].values():
        clusters = {c["job_cluster_key"] for c in job["job_clusters"]}
        assert len(job["schedule"]["quartz_cron_expression"].split()) == 6
        for task in job["tasks"]:
            assert task["job_cluster_key"] in clusters
            file = (DEPLOY / "databricks" / task["spark_python_task"]["python_file"]).resolve()
            assert file.is_file() and set(p for p in task["spark_python_task"]["parameters"] if p.startswith("--")) <= options_of(file.stem)
            for name in re.findall(r"\$\{var\.(\w+)\}", " ".join(task["spark_python_task"]["parameters"])):
                assert name in found["variables"]


def test_cron():
    lines = [x for x in (DEPLOY / "crontab").read_text().splitlines() if x and not x.startswith("#") and not re.match(r"\w+=", x)]
    fields = (range(60), range(24), range(1, 32), range(1, 13), range(8))
    for line in lines:
        *when, command = line.split(maxsplit=5)
        assert all(x == "*" or int(x) in allowed for x, allowed in zip(when, fields))
        job = re.search(r"jobs/(\w+)\.py", command)[1]
        assert (REPO / "jobs" / f"{job}.py").is_file() and set(re.findall(r" (--[\w-]+)", command)) <= options_of(job)
        assert subprocess.run(["sh", "-n", "-c", command.replace("\\%", "%")]).returncode == 0
        assert "%" not in command  # cron takes it for a new line
    assert len(lines) == 2


def test_the_dag_starts_jobs_that_exist_one_at_a_time():
    tree = ast.parse((DEPLOY / "airflow_dag.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    jobs = {c.args[0].value for c in calls if c.func.id == "run"}
    assert jobs == {"refresh", "maintain"} and all((REPO / "jobs" / f"{j}.py").is_file() for j in jobs)
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value.startswith("--")}
    assert texts <= options_of("refresh") | options_of("maintain")
    dags = [{k.arg: k.value for k in c.keywords} for c in calls if c.func.id == "dag"]
    assert len(dags) == 2 and all(d["max_active_runs"].value == 1 and d["catchup"].value is False for d in dags)
    from twinlib.errors import Alerted, ConfigError, DataError

    codes = next(n for n in tree.body if isinstance(n, ast.Assign))
    assert [v.value for v in codes.value.elts] == [0, ConfigError.exit_code, DataError.exit_code, Alerted.exit_code]


def test_the_dag_is_imported_by_airflow(tmp_path):
    """Where $TWINLIB_AIRFLOW_PYTHON names a Python that has Airflow."""
    python = os.environ.get("TWINLIB_AIRFLOW_PYTHON")
    if not python:
        pytest.skip("Airflow is not tested: set TWINLIB_AIRFLOW_PYTHON to a Python that has it")
    code = (
        f"import runpy; found = runpy.run_path({str(DEPLOY / 'airflow_dag.py')!r})\n"
        "from airflow.models.dag import DAG\n"
        "night, maintenance = found['night'](), found['maintenance']()\n"
        "print(night.dag_id, sorted(night.task_ids), maintenance.dag_id, sorted(maintenance.task_ids))"
    )
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "twinlib_night ['alert', 'refresh'] twinlib_maintenance ['maintain']"


def test_the_archive_holds_twinlib_and_leaves_out_what_only_tests_need():
    names = re.findall(r'"([\w*]+)"', re.search(r"LEFT_OUT = \((.*?)\)", (DEPLOY / "pack.py").read_text(), re.DOTALL)[1])
    needed = {"numpy", "numba", "llvmlite", "pyarrow", "pandas", "scipy", "sympy", "pydantic", "yaml", "pint", "duckdb", "sqlglot", "rich", "typer", "filelock"}
    assert not {n for n in needed for pattern in names if Path(n).match(pattern)}
