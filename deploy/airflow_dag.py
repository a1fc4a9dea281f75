"""Airflow (2.9 or newer): the nightly refresh, weekly housekeeping. Put this file in the DAGs folder and set three Airflow variables.

twinlib_home: folder with jobs/ and .venv; twinlib_config: the run configuration; twinlib_submit: `spark-submit` and its options (left
empty, the job runs on the machine of the Airflow worker).

One night at a time: the tables have one writer. A missed night is not made up for: the next one reads everything that has arrived;
`airflow dags backfill` builds the tables of a past day (--as-of).
"""

from __future__ import annotations

import shlex
import subprocess
from datetime import datetime, timedelta

from airflow.decorators import dag, task
from airflow.exceptions import AirflowFailException
from airflow.models import Variable

DONE, BAD_CONFIGURATION, DATA_REFUSED, ALERTS = 0, 2, 3, 4


def run(job: str, *options: str) -> int:
    """Run a job and return its exit code; what cannot get better by itself is not tried again."""
    home = Variable.get("twinlib_home")
    start = Variable.get("twinlib_submit", default_var="") or f"{home}/.venv/bin/python"
    command = [*shlex.split(start), f"{home}/jobs/{job}.py", "--config", Variable.get("twinlib_config"), *options]
    code = subprocess.run(command, cwd=home, check=False).returncode
    if code in (BAD_CONFIGURATION, DATA_REFUSED):
        raise AirflowFailException(f"{job} ended with {code}: its last line says what is wrong")
    if code not in (DONE, ALERTS):
        raise RuntimeError(f"{job} ended with {code}")
    return code


@dag(
    dag_id="twinlib_night", schedule="0 2 * * *", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=15), "execution_timeout": timedelta(hours=6)},
)
def night():
    @task
    def refresh(run_type: str, day: str) -> int:
        return run("refresh", *(["--as-of", day] if run_type == "backfill" else []))

    @task
    def alert(code: int) -> None:
        """Fails, and so tells whoever is told of failures, where the night is done but with alerts."""
        if code == ALERTS:
            raise AirflowFailException("the night is done, but with alerts: see the table `alerts`")

    alert(refresh("{{ dag_run.run_type }}", "{{ ds }}"))


@dag(dag_id="twinlib_maintenance", schedule="0 12 * * 0", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def maintenance():
    @task
    def maintain() -> int:
        return run("maintain", "--retain-hours", "720")

    maintain()


night()
maintenance()
