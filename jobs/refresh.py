"""The nightly refresh: raw files to cohort effects, doing only what has changed.

    python jobs/refresh.py --config conf/demo.yaml
"""

import typer

from twinlib import job
from twinlib.report.summary import summarise
from twinlib.stages import Night, Plan


def main(config: job.ConfigPath) -> None:
    def work():
        night = Night(Plan.of(config))
        night.run()
        summarise(night)

    job.run(work)


if __name__ == "__main__":
    typer.run(main)
