"""Read the raw files into patients, observations, exposures and quarantine.

    python jobs/ingest.py --config conf/demo.yaml
"""

import typer

from twinlib import job
from twinlib.stages import Night, Plan


def main(config: job.ConfigPath) -> None:
    def work():
        night = Night(Plan.of(config))
        with night.storage.writer():
            night.ingest()

    job.run(work)


if __name__ == "__main__":
    typer.run(main)
