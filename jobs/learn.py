"""Learn a population prior from the timelines, as a new version that fits can use.

    python jobs/learn.py --config conf/demo.yaml
"""

import typer

from twinlib import job
from twinlib.stages import Night, Plan


def main(config: job.ConfigPath) -> None:
    def work():
        night = Night(Plan.of(config))
        with night.storage.writer():
            night.learn()

    job.run(work)


if __name__ == "__main__":
    typer.run(main)
