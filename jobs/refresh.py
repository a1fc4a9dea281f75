"""The nightly refresh: raw files to cohort effects, doing only what has changed.

    python jobs/refresh.py --config conf/demo.yaml
    python jobs/refresh.py --config conf/demo.yaml --dry-run
    python jobs/refresh.py --config conf/demo.yaml --as-of 2026-01-12
"""

from typing import Annotated

import typer

from twinlib import job
from twinlib.errors import Alerted
from twinlib.report.summary import summarise
from twinlib.stages import Night, Plan


def main(
    config: job.ConfigPath,
    as_of: job.AsOf = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would run and how much, and write nothing")] = False,
) -> None:
    def work():
        night = Night(Plan.of(config, job.end_of(as_of)))
        if dry_run:
            for stage, verdict, amount in night.preview():
                typer.echo(f"{stage:10} {verdict:10} {amount}".rstrip())
            return
        found = night.run()
        summarise(night)
        if found:
            raise Alerted(f"the run is done, but with alerts (table alerts): {'; '.join(map(str, found))}")

    job.run(work)


if __name__ == "__main__":
    typer.run(main)
