"""What learning has found, in words and tables (Markdown): the population, its phenotypes, and which model suits whom."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from twinlib.stages import Night
from twinlib.tables import schemas
from twinlib.whatif.disclosure import small

APART = 1.0  # SDs between patients by which a phenotype's parameter differs from the population's to be named
CLEAR = 0.95  # probability beyond which a model is called clearly the better one for a patient


def describe(night: Night) -> str | None:
    """The newest learnt version of the plan's model; None where none was learnt."""
    model = night.plan.fitter.model.name
    fit = night.storage.read(schemas.POPULATION_FITS).where(F.col("model") == model).orderBy(F.desc("learnt_at"), "prior_version").first()
    if fit is None:
        return None
    version = fit.prior_version
    read = lambda t: night.storage.read(t).where((F.col("model") == model) & (F.col("prior_version") == version))  # noqa: E731
    parts = [
        _head(fit), _parameters(read(schemas.POPULATIONS).collect()), _effects(read(schemas.POPULATION_EFFECTS).orderBy("term", "parameter").collect()),
        _phenotypes(night, read), _comparison(read(schemas.MODEL_COMPARISONS), night.config.disclosure.smallest_cell), _trace(read(schemas.POPULATION_TRACE), fit.phenotypes),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _head(fit) -> str:
    sample = "" if fit.patients == fit.patients_known else f", a stratified sample of {fit.patients_known:,}"
    state = fit.status if fit.reason is None else f"{fit.status} ({fit.reason})"
    text = f"# Population of {fit.model}, version {fit.prior_version}\n\nLearnt from {fit.patients:,} patients{sample}; {fit.patients_left_out:,} left out; {fit.readings:,} readings. Learning {state} after {fit.iterations} passes."
    if fit.minus_two_log_likelihood is None:
        return text
    tried = ", ".join(f"{b:.1f}" for b in fit.bic_by_phenotypes)
    unknown = f" Not identified by the data: {'; '.join(fit.unidentified)}." if fit.unidentified else ""
    return (
        f"{text}{unknown}\n\n-2 log likelihood {fit.minus_two_log_likelihood:.2f} (SE {fit.minus_two_log_likelihood_se:.2f}), {fit.parameters} free parameters,"
        f" AIC {fit.aic:.1f}, BIC {fit.bic:.1f}. BIC by number of phenotypes: {tried}."
    )


def _table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(names)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [names, ["---"] * len(names), *rows])


def _number(x: float | None, digits: int = 3) -> str:
    return "–" if x is None else f"{x:.{digits}g}"


def _parameters(rows) -> str:
    if not rows:
        return ""
    sd = lambda variance: _number(None if variance is None else np.sqrt(variance))  # noqa: E731
    lines = [
        (r.parameter, r.unit or "1", _number(r.median, 4), _number(r.mean_se), sd(r.patient_variance), sd(r.occasion_variance), _number(r.shrinkage, 2),
         f"{_number(r.eta_mean, 2)} ± {_number(r.eta_sd, 2)}" if r.eta_sd is not None else "–", "fixed" if r.fixed else "")
        for r in sorted(rows, key=lambda r: (r.level == "population", r.parameter))
    ]
    names = ("parameter", "unit", "median", "SE (transformed)", "SD between patients", "between episodes", "shrinkage", "deviations", "")
    return "## Parameters\n\n" + _table(names, lines)


def _effects(rows) -> str:
    if not rows:
        return ""
    lines = [
        (r.parameter, f"{r.covariate} = {r.level:g}" if r.level is not None else f"{r.kind} {r.covariate}", _number(r.reference), _number(r.coefficient),
         "fixed" if r.fixed else _number(r.coefficient_se), f"{r.patients_missing:,}")
        for r in rows
    ]
    return "## Covariates\n\nEffects on the transformed scale.\n\n" + _table(("parameter", "covariate", "reference", "effect", "SE", "patients without it"), lines)


def _phenotypes(night: Night, read) -> str:
    """Every phenotype: size, certainty, typical parameters with units, what sets it apart, covariates of its members."""
    rows = read(schemas.PHENOTYPES).orderBy("component", "parameter").collect()
    if not rows:
        return ""
    members = read(schemas.POPULATION_MEMBERS).where("phenotype IS NOT NULL").select("patient_id", "phenotype", F.array_max("phenotype_probabilities").alias("sure"))
    sizes = {r.phenotype: r for r in members.groupBy("phenotype").agg(F.count(F.lit(1)).alias("n"), F.avg("sure").alias("sure")).collect()}
    counts = {c: sizes[c].n if c in sizes else 0 for c in {r.component for r in rows}}
    smallest = night.config.disclosure.smallest_cell
    hidden = small(np.array(list(counts.values())), smallest).any()
    covariates = {} if hidden else _covariates(night.storage.read(schemas.TIMELINES), members, smallest)
    out = ["## Phenotypes"]
    if hidden:
        out.append("Counts and covariates are withheld: one phenotype has too few patients to be published.")
    for c in sorted(counts):
        mine = [r for r in rows if r.component == c]
        size = "" if hidden else f", {counts[c]:,} patients"
        sure = f"; its patients belong to it with a mean probability of {sizes[c].sure:.2f}" if c in sizes and not hidden else ""
        apart = [f"{r.parameter} {'above' if r.distance > 0 else 'below'} the population's by {abs(r.distance):.1f} SD" for r in mine if abs(r.distance) >= APART]
        lines = [f"### Phenotype {c}: {100 * mine[0].weight:.0f} % of the population{size}", f"Set apart by: {', '.join(apart) or 'nothing much'}{sure}."]
        lines.append(_table(("parameter", "unit", "median", "distance, SD"), [(r.parameter, r.unit or "1", _number(r.median, 4), f"{r.distance:+.2f}") for r in mine]))
        if covariates.get(c):
            lines.append(_table(("covariate", "patients with it", "median", "quartiles"), covariates[c]))
        out += lines
    return "\n\n".join(out)


def _covariates(timelines: DataFrame, members: DataFrame, smallest: int) -> dict[int, list[tuple]]:
    """Rows of covariates by phenotype, from the patients' first episodes, without values that stand in for unknown ones and without those that
    too few patients have."""
    first = F.row_number().over(Window.partitionBy("patient_id").orderBy("episode"))
    rows = timelines.where("status = 'ready'").withColumn("k", first).where("k = 1").select("patient_id", F.explode("covariates").alias("c"))
    known = rows.where("NOT c.assumed AND NOT isnan(c.value)").select("patient_id", "c.name", "c.value").join(members, "patient_id")
    found = known.groupBy("phenotype", "name").agg(F.count(F.lit(1)).alias("n"), F.percentile("value", [0.25, 0.5, 0.75]).alias("q")).orderBy("phenotype", "name")
    out: dict[int, list[tuple]] = {}
    for r in found.where(F.col("n") >= smallest).collect():
        out.setdefault(r.phenotype, []).append((r.name, f"{r.n:,}", _number(r.q[1]), f"{_number(r.q[0])} to {_number(r.q[2])}"))
    return out


def _comparison(rows: DataFrame, smallest: int) -> str:
    """Which candidates suit how many patients, and all together."""
    per = rows.where("status = 'compared'").groupBy("candidate", "candidate_version").agg(
        F.count(F.lit(1)).alias("n"), F.avg("probability").alias("mean"), F.sum("log_bayes_factor").alias("total"),
        F.count_if(F.col("probability") > CLEAR).alias("clear"),
    ).orderBy(F.desc("total"), "candidate", "candidate_version").collect()
    if not per:
        return ""
    few = small(np.array([c for r in per for c in (r.clear, r.n - r.clear)]), smallest).any()
    lines = [(r.candidate, r.candidate_version, f"{r.mean:.2f}", "withheld" if few else f"{100 * r.clear / r.n:.0f} %", f"{r.total:+.1f}") for r in per]
    names = ("model", "prior", "mean probability", f"clearly the best (above {CLEAR:g})", "log Bayes factor of all patients")
    return f"## Models compared on {per[0].n:,} patients\n\nEqual odds before the readings; by patient in `model_comparisons`.\n\n" + _table(names, lines)


def _trace(rows: DataFrame, phenotypes: int) -> str:
    found = rows.where(F.col("phenotypes") == phenotypes).orderBy("iteration").collect()
    if not found:
        return ""
    shown = found if len(found) <= 12 else [*found[:4], *found[-8:]]
    lines = [(str(r.iteration), f"{r.patients:,}", f"{r.minus_two_log_likelihood:.2f}", f"{r.change:.2g}") for r in shown]
    return "## Convergence\n\n" + _table(("pass", "patients", "-2 log likelihood", "largest change"), lines)
