"""Patients withdraw: remove every trace of them from all tables and their history, and keep them out of later ingests.

    python jobs/forget.py --config my.yaml < withdrawn.txt
    python jobs/forget.py --config my.yaml --file withdrawn.txt --namespace hospital

One identifier or pseudonym per line. They are read from a file or standard input only, so that none stands in a shell history, a process
list or a log.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from twinlib import job, sources
from twinlib.errors import DataError
from twinlib.forget import candidates, forget
from twinlib.stages import Night, Plan


def main(
    config: job.ConfigPath,
    file: Annotated[Path | None, typer.Option("--file", help="file with one identifier or pseudonym per line (standard input if not given)")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", help="namespace of raw identifiers, where the sources have several")] = None,
) -> None:
    def work():
        try:
            lines = (sys.stdin if file is None else file.open(encoding="utf-8")).read().splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise DataError(f"{file or 'standard input'}: cannot be read ({type(e).__name__}); expected one identifier per line") from None
        plan = Plan.of(config)
        key = sources.load_key(plan.config.pseudonym_key)
        people = candidates(lines, plan.config, key, namespace)
        night = Night(plan)
        with night.storage.writer():
            counts = forget(night.storage, people, key)
            night.effects()
        typer.echo(f"{counts['lines']} patients named, {counts['known']} of them known, {counts['rows']} rows removed")

    job.run(work)


if __name__ == "__main__":
    typer.run(main)
