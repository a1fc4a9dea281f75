"""Make the synthetic cohort that a configuration asks for, unless it is there.

    python jobs/generate.py --config conf/demo.yaml
"""

from pathlib import Path
from typing import Annotated

import typer

from twinlib.config import load
from twinlib.errors import ConfigError, TwinlibError
from twinlib.synthetic import generate


def main(config: Annotated[Path, typer.Option(help="run configuration (YAML) with a `generate` section")]) -> None:
    try:
        run = load(config)
        if run.generate is None:
            raise ConfigError(f"{config}: generate: there is no such section, so there is nothing to make")
        made = generate(run.generate, run.seed)
    except TwinlibError as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(e.exit_code) from None
    cohort, done = run.generate, "written" if made else "there already"
    typer.echo(f"{cohort.root}: {cohort.patients} patients, {cohort.days} days, {done}")


if __name__ == "__main__":
    typer.run(main)
