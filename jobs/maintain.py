"""Housekeeping of the tables: small files become few, and versions that are not kept go.

    python jobs/maintain.py --config my.yaml --retain-hours 720

Delta: OPTIMIZE, then VACUUM. Parquet: old version folders and what a crash left; `storage.keep_versions` says how many stay.
"""

from typing import Annotated

import typer

from twinlib import job
from twinlib.stages import Night, Plan
from twinlib.tables.schemas import TABLES


def main(
    config: job.ConfigPath,
    retain_hours: Annotated[float, typer.Option(min=0, help="Delta: hours for which past versions stay readable")] = 720,
) -> None:
    def work():
        storage = Night(Plan.of(config)).storage
        with storage.writer():
            for table in TABLES.values():
                counts = storage.maintain(table, retain_hours)
                typer.echo(f"{table.name:16} {counts['files']:6} files, {counts['removed']:6} removed")

    job.run(work)


if __name__ == "__main__":
    typer.run(main)
