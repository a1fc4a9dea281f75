"""Compare a prior version with the one in use, and make it the one that nights use.

    python jobs/promote.py --config my.yaml --version learned-2                                  # compares only
    python jobs/promote.py --config my.yaml --version learned-2 --comment "spring cohort" --yes
"""

from typing import Annotated

import typer

from twinlib import job
from twinlib.population import promotion
from twinlib.stages import Night, Plan
from twinlib.tables.schemas import TWINS


def main(
    config: job.ConfigPath,
    version: Annotated[str, typer.Option(help="prior version of the table populations")],
    comment: Annotated[str, typer.Option(help="why it is promoted; kept in the table promotions")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="promote it")] = False,
) -> None:
    def work():
        night = Night(Plan.of(config))
        model, storage = night.plan.fitter.model, night.storage
        used = promotion.promoted(storage, model)
        old, new = (promotion.chosen(storage, model, v) for v in (used, version))
        found = promotion.compare(model, old, new, storage.read(TWINS))
        typer.echo(f"{model.name}: {version} against {used}")
        for s in found.shifts:
            typer.echo(f"  {s.parameter:24} median {s.median[0]:.4g} -> {s.median[1]:.4g}, sd {s.sd[0]:.3g} -> {s.sd[1]:.3g}, shift {s.shift:+.2f} sd")
        typer.echo(
            f"  log evidence of {found.twins} twins {found.log_evidence_gain:+.1f} (effective share of draws at least {found.worst_effective_share:.2f})"
        )
        if not yes:
            return typer.echo("nothing was changed: --yes promotes it")
        promotion.promote(storage, model, version, comment)
        typer.echo(f"promoted: the next night of a configuration with `fit: {{prior_version: {promotion.PROMOTED}}}` fits every twin anew")

    job.run(work)


if __name__ == "__main__":
    typer.run(main)
