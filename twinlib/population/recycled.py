"""E-step from posterior draws that are there already: those of the twins, weighted by how probable each is under the current estimate, against
the prior under which it was drawn (Hogg, Myers & Bovy 2010, 10.1088/0004-637X/725/2/2166).

Costs nothing but the fit that was made anyway, where new draws of a patient take as long as that fit in every iteration. It can only see what
the draws reach: a posterior that moves by more than its width under the new prior has few of them (`log_evidence_se` says so).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from scipy.special import logsumexp

from twinlib.engine.contract import Model
from twinlib.engine.normal import Normal
from twinlib.population.estimate import Estimate, Structure
from twinlib.population.expectation import Expected, Sums, collect
from twinlib.population.priors import Prior

COLUMNS = ["draws", "n_observations", "log_evidence", "log_evidence_se", "prior_version", "twin_reason"]  # of twins
READ = ["patient_id", "episode", "covariates", *COLUMNS]


@dataclass(frozen=True)
class Drawn:
    """Twins of some patients: draws (n, k, p) on the transformed scale, equally weighted, and their log density (n, k) under the priors that
    they were drawn under; log evidence under those and its SE (n,); readings (n,). Patients without a twin have NaN draws, and a reason."""

    draws: np.ndarray
    log_prior: np.ndarray
    log_evidence: np.ndarray
    log_evidence_se: np.ndarray
    readings: np.ndarray
    reason: np.ndarray


def expect(twins: Drawn, z: np.ndarray, estimate: Estimate, s: Structure, information: bool = False) -> Expected:
    """The E-step as `expectation.expect` does it: z (n, K) are the covariate columns. Nothing computed for a patient depends on the others.

    status: used; left_out, for the twin's reason or `no_finite_draw`.
    """
    n, k, p = twins.draws.shape
    c, layout = estimate.components, Sums(s, estimate.components, information)
    out = Expected(
        np.full(n, "left_out", object), twins.reason.copy(), twins.readings, np.full(n, np.nan), np.full(n, np.nan), np.full((n, p), np.nan),
        np.full((n, p), np.nan), np.full((n, c), np.nan), np.zeros((n, layout.size)),
    )
    known, finite = np.isfinite(twins.draws).all((1, 2)), np.isfinite(twins.log_evidence)
    out.reason[known & ~finite] = "no_finite_draw"
    g = np.flatnonzero(known & finite)
    if g.size:
        draws = twins.draws[g]
        parts, evidence, variance = [], np.empty((g.size, c)), np.empty((g.size, c))
        for a in range(c):
            mean = estimate.means(z[g], a)
            now = Normal(mean, estimate.omega)
            ratio = now.log_constant - now.minus_log(draws) - twins.log_prior[g]
            total = logsumexp(ratio, axis=1)
            weights = np.exp(ratio - total[:, None])
            evidence[:, a] = twins.log_evidence[g] + total - np.log(k)
            variance[:, a] = twins.log_evidence_se[g] ** 2 + (weights**2).sum(1) - 1 / k
            parts.append((draws, weights, mean))
        none = lambda theta: (np.zeros((*theta.shape[:2], 0)), np.zeros((*theta.shape[:2], 0, 0)))  # noqa: E731
        collect(parts, evidence, variance, twins.readings[g], np.ones(g.size, int), none, z[g], estimate, s, information, g, out)
    out.sums[out.status != "used"] = layout.left_out()
    return out


def joined(timelines: DataFrame, twins: DataFrame, model: Model) -> DataFrame:
    """Timelines with the COLUMNS of their twins, as far as those are of these equations and readings; `twin_reason` says why not."""
    twins = twins.where(F.col("model") == model.name).select(
        "patient_id", "model", "episode", F.col("status").alias("twin_status"), F.col("reason").alias("why"), "timeline_hash", "model_version",
        *COLUMNS[:-1],
    )
    reason = (
        F.when(F.col("twin_status").isNull(), "no_twin").when(F.col("twin_status") != "converged", F.coalesce("why", "twin_status"))
        .when((F.col("timeline_hash") != F.col("content_hash")) | ~F.startswith("model_version", F.lit(f"{model.version}+")), "outdated_twin")
        .when(F.col("log_evidence").isNull(), "draws_of_a_power")
    )
    known = timelines.join(twins, ["patient_id", "model", "episode"], "left").withColumn("twin_reason", reason)
    values = [F.when(F.col("twin_reason").isNull(), F.col(c)).alias(c) for c in COLUMNS[:-1]]
    return known.select(*timelines.columns, *values, "twin_reason")


def chosen(table: pa.Table, at: np.ndarray) -> list[dict]:
    """The rows of the patients whose rows of `table` begin at `at`: of each that of the twin with most readings."""
    readings = np.array([r or 0 for r in table.column("n_observations").to_pylist()])
    return table.take([int(a + readings[a:b].argmax()) for a, b in zip(at[:-1], at[1:])]).to_pylist()


def drawn(rows: Sequence[dict], covariates: Sequence[Mapping[str, float]], p: int, priors: Mapping[str, Prior]) -> Drawn:
    """Twins with p parameters as arrays, one row per patient, from their COLUMNS. priors: by version."""
    count = next((np.size(row["draws"]) // p for row in rows if row["draws"] is not None), 1)
    draws = [np.full((count, p), np.nan) if row["draws"] is None else np.reshape(row["draws"], (-1, p)) for row in rows]
    number = lambda name: np.array([np.nan if row[name] is None else row[name] for row in rows], float)  # noqa: E731
    before = [
        np.full(count, np.nan) if row["draws"] is None else priors[row["prior_version"]].log_density(d, c) for row, d, c in zip(rows, draws, covariates)
    ]
    return Drawn(
        np.stack(draws), np.stack(before), number("log_evidence"), number("log_evidence_se"), np.nan_to_num(number("n_observations")).astype(int),
        np.array([row["twin_reason"] for row in rows], object),
    )
