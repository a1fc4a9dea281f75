"""Learn a population prior from the timelines, as a new version that fits can use, and describe it in population.md beside the tables.

    python jobs/learn.py --config conf/demo.yaml
"""

import typer

from twinlib import job
from twinlib.report.population import describe
from twinlib.stages import Night, Plan
from twinlib.tables.storage import local_folder


def main(config: job.ConfigPath) -> None:
    def work():
        night = Night(Plan.of(config))
        with night.storage.writer():
            night.learn()
        text, folder = describe(night), local_folder(night.config.output)
        if text and folder:
            (folder / "population.md").write_text(text, encoding="utf-8")
        elif text:
            typer.echo(text)

    job.run(work)


if __name__ == "__main__":
    typer.run(main)
