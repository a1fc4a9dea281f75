"""The short summary that ends a refresh: what came in, what was refused, the twins, the effects, and how to look further."""

from __future__ import annotations

from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table

from twinlib.stages import Night
from twinlib.synthetic.recovery import recovery
from twinlib.tables import schemas

SHOWN = ("tir", "tbr_70", "mean_glucose")  # outcomes of the summary; all are in the table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table


def _counts(night: Night, table: schemas.Table, *columns: str) -> list:
    return night.storage.read(table).groupBy(*columns).count().orderBy(F.desc("count"), *columns).collect()


def records(night: Night) -> Table:
    """Records by source: read, accepted, duplicates, quarantined."""
    out = _table("Records", "source", "read", "accepted", "duplicates", "quarantined")
    rows = night.storage.read(schemas.INGEST_COUNTS).orderBy("source").collect()
    for r in rows:
        out.add_row(r.source, *[f"{r[n]:,}" for n in ("rows_read", "accepted", "duplicates", "quarantined")])
    if len(rows) > 1:
        out.add_row("all", *[f"{sum(r[n] for r in rows):,}" for n in ("rows_read", "accepted", "duplicates", "quarantined")], style="bold")
    return out


def refused(night: Night) -> Table:
    """Refused records by reason."""
    out = _table("Refused records", "reason", "records")
    for r in _counts(night, schemas.QUARANTINE, "reason"):
        out.add_row(r.reason, f"{r['count']:,}")
    return out


def twins(night: Night) -> Table:
    """Episodes by status and reason."""
    out = _table("Twins", "status", "reason", "episodes")
    for r in _counts(night, schemas.TWINS, "status", "reason"):
        out.add_row(r.status, r.reason or "", f"{r['count']:,}")
    return out


def changes(night: Night) -> Table:
    """What new readings said of the twins of the night before."""
    out = _table("Twins against their newest readings", "answer", "episodes")
    rows = night.storage.read(schemas.TWIN_CHECKS)
    names = {"checked": F.lit(True), "changed": F.col("changed"), "noisier": F.col("noisier")}
    found = rows.agg(*[F.count_if(c & (F.col("status") == "checked")).alias(n) for n, c in names.items()]).first()
    for name in names if found.checked else ():
        out.add_row(name, f"{found[name]:,}")
    return out


def _patients(rows: list) -> str:
    known = [r for r in rows if r is not None]
    return "suppressed" if any(r.suppressed for r in known) else f"{max((r.n_patients for r in known), default=0):,}"


def effects(night: Night) -> Table:
    """Mean effect of every scenario in every cohort on the main outcomes, with 90 % intervals."""
    rows = night.storage.read(schemas.COHORT_EFFECTS).where(F.col("outcome").isin(*SHOWN) & (F.col("subgroup") == "all")).collect()
    units = {r.outcome: r.unit for r in rows}
    out = _table("Mean effect (90 % interval)", "cohort", "scenario", "patients", *[f"{o}, {units.get(o, '')}" for o in SHOWN])
    cells = {(r.cohort, r.scenario, r.outcome): r for r in rows}
    for cohort in night.config.cohorts:
        for scenario in night.plan.simulator.scenarios:
            found = [cells.get((cohort.name, scenario.name, o)) for o in SHOWN]
            text = [
                "–" if r is None or r.effect_mean is None else f"{r.effect_mean:+.1f} ({r.effect_q05:+.1f} to {r.effect_q95:+.1f})" for r in found
            ]
            out.add_row(cohort.name, scenario.name, _patients(found), *text)
    return out


def truth(night: Night) -> Table | None:
    """How well the twins find the known truth of a synthetic cohort."""
    found = recovery(night.config, night.storage.read(schemas.TWIN_PARAMETERS))
    if found is None:
        return None
    out = _table("Recovery of the known truth", "parameter", "twins", "90 % interval holds it", "median error", "correlation of logs")
    for r in found:
        out.add_row(r.parameter, f"{r.twins:,}", f"{100 * r.coverage:.0f} %", f"{100 * r.median_error:.0f} %", f"{r.correlation:.2f}")
    return out


def summarise(night: Night, console: Console | None = None) -> None:
    """Print the summary."""
    console = console or Console(width=None if Console().is_terminal else 130)
    patients = night.storage.read(schemas.PATIENTS).count()
    episodes = night.storage.read(schemas.TIMELINES).count()
    console.print(f"\n[bold]{night.config.name}[/bold]: {patients:,} patients, {episodes:,} episodes of {night.config.episodes.days} days\n")
    parts = [records(night), refused(night), twins(night), changes(night), effects(night) if night.plan.simulator else None, truth(night)]
    for part in parts:
        if part is not None and part.row_count:
            console.print(part, "")
    console.print(f"Tables: {night.config.tables} (columns and units: docs/data-dictionary.md)", soft_wrap=True)
    if night.config.storage.format == "parquet":
        query = '"SELECT status, count(*) AS episodes FROM twins GROUP BY ALL"'
        console.print(f"Query:  .venv/bin/python jobs/query.py {night.config.output} {query}", soft_wrap=True, highlight=False)
