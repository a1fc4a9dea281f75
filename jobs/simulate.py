"""Simulate all scenarios for every twin that has changed, and refresh recommendations and cohort effects.

    python jobs/simulate.py --config conf/demo.yaml
"""

import typer

from twinlib import job
from twinlib.stages import Night, Plan


def main(config: job.ConfigPath) -> None:
    def work():
        night = Night(Plan.of(config))
        with night.storage.writer():
            night.simulate()
            night.recommend()
            night.effects()

    job.run(work)


if __name__ == "__main__":
    typer.run(main)
