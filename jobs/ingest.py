"""Read the raw files into patients, observations, exposures and quarantine.

    python jobs/ingest.py --config conf/demo.yaml                   all files, the tables built anew
    python jobs/ingest.py --config conf/demo.yaml --follow          files that have arrived since the last time
    python jobs/ingest.py --config conf/demo.yaml --follow --every 60    a live feed: looks every 60 seconds until it is stopped
"""

import signal
from typing import Annotated

import typer

from twinlib import job
from twinlib.follow import Landing
from twinlib.stages import Night, Plan

Follow = Annotated[bool, typer.Option("--follow", help="take in what has arrived since the last time")]
Every = Annotated[float | None, typer.Option("--every", min=1, help="with --follow: look every so many seconds, until stopped", show_default=False)]


def main(config: job.ConfigPath, follow: Follow = False, every: Every = None) -> None:
    def once():
        night = Night(Plan.of(config))
        with night.storage.writer():
            night.ingest()

    def stream():
        night = Night(Plan.of(config, landing=True))
        query = Landing(night.spark, night.storage, night.config).start(every)
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: query.stop())  # a batch that is cut short is done again by the next run
        query.awaitTermination()

    job.run(stream if follow else once)


if __name__ == "__main__":
    typer.run(main)
