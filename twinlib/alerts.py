"""Thresholds that a night may not exceed without somebody being told: rows of `alerts`, and exit code 4."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from twinlib.config import AlertConfig


@dataclass(frozen=True)
class Alert:
    """A threshold exceeded: which, where it was seen, by how much."""

    alert: str
    subject: str
    value: float
    threshold: float

    def __str__(self) -> str:
        return f"{self.alert} of {self.subject} is {self.value:.3g}, allowed {self.threshold:.3g}"


def find(counts: DataFrame, twins: DataFrame, parameters: DataFrame, prior: DataFrame, limits: AlertConfig) -> list[Alert]:
    """What exceeds its threshold, in a fixed order.

    counts: INGEST_COUNTS; twins and parameters: TWINS, TWIN_PARAMETERS; prior: the rows of POPULATIONS in use. Drift is the mean over
    twins of the posterior median minus the prior's, in prior standard deviations: 0 is expected where the prior is right. It counts where its 95 % interval lies beyond the threshold.
    """
    group = F.substring_index("source", ".", 1)  # the entries of a mapping count together
    share = F.try_divide(F.sum("quarantined"), F.sum("rows_read")).alias("share")  # null where nothing was read
    shares = counts.groupBy(group.alias("source")).agg(share).where("share IS NOT NULL").collect()
    found = [Alert("quarantined_share", r.source, r.share, limits.quarantined_share) for r in shares if r.share > limits.quarantined_share]
    bad = F.count_if(F.col("status").isin("failed", "not_converged")) / F.count(F.lit(1))
    fits = twins.where("status != 'insufficient_data'").groupBy("model").agg(bad.alias("share")).collect()
    found += [Alert("failed_fit_share", r.model, r.share, limits.failed_fit_share) for r in fits if r.share > limits.failed_fit_share]
    drifts = [r for r in _drift(parameters, prior) if r.error is not None and abs(r.drift) - 1.96 * r.error > limits.prior_drift]
    found += [Alert("prior_drift", r.parameter, r.drift, limits.prior_drift) for r in drifts]
    return sorted(found, key=lambda a: (a.alert, a.subject))


def _drift(parameters: DataFrame, prior: DataFrame) -> list:
    def scaled(x: Column) -> Column:
        odds = F.log(x / (1 - x))
        return F.when(F.col("transform") == "log", F.log(x)).when(F.col("transform") == "logit", odds).otherwise(x)

    off = (scaled(F.col("q50")) - scaled(F.col("median"))) / F.col("prior_sd")
    known = prior.where("sd > 0").select("model", "parameter", "transform", "median", F.col("sd").alias("prior_sd"))
    error = F.stddev(off) / F.sqrt(F.count(off))
    both = parameters.join(F.broadcast(known), ["model", "parameter"]).groupBy("parameter")
    return both.agg(F.avg(off).alias("drift"), error.alias("error")).collect()


def rows(run_id: str, found: list[Alert]) -> list[tuple]:
    """ALERTS rows."""
    now = datetime.now(timezone.utc)
    return [(run_id, a.alert, a.subject, float(a.value), float(a.threshold), now) for a in found]
