"""Compare a prior version with the one in use, and make it the one that nights use.

    python jobs/promote.py --config my.yaml --version learned-41c07a9d52be                                  # compares only
    python jobs/promote.py --config my.yaml --version learned-41c07a9d52be --comment "spring cohort" --yes
"""

from typing import Annotated

import typer

from twinlib import job
from twinlib.population import promotion
from twinlib.population.priors import PROMOTED
from twinlib.stages import Night, Plan
from twinlib.tables.schemas import TIMELINES, TWINS


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
        found = promotion.compare(model, old, new, storage.read(TWINS), storage.read(TIMELINES))
        typer.echo(f"{model.name}: {new.version} against {used}")
        for s in found.shifts:
            spread = f", sd {s.sd[0]:.3g} -> {s.sd[1]:.3g}, shift {s.shift:+.2f} sd" if s.sd[0] else ""
            typer.echo(f"  {s.parameter:24} median {s.median[0]:.4g} -> {s.median[1]:.4g}{spread}")
        if any(found.effects):
            typer.echo("  covariate effects " + " -> ".join(", ".join(names) or "none" for names in found.effects))
        gain = "not comparable, since values that all patients share differ" if found.log_evidence_gain is None else f"{found.log_evidence_gain:+.1f}"
        typer.echo(f"  log evidence of {found.twins} twins {gain} (effective share of draws at least {found.worst_effective_share:.2f})")
        if not yes:
            return typer.echo("nothing was changed: --yes promotes it")
        promotion.promote(storage, model, new.version, comment)
        typer.echo(f"promoted: the next night of a configuration with `fit: {{prior_version: {PROMOTED}}}` fits every twin anew")

    job.run(work)


if __name__ == "__main__":
    typer.run(main)
