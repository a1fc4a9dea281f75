"""Which prior version the nights use: a version is learned, compared, and promoted by hand; until then nothing changes.

`fit: {prior_version: promoted}` follows the newest row of `promotions`; a fixed name stays with that version.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from twinlib.engine.contract import Model
from twinlib.errors import ConfigError
from twinlib.population.priors import PUBLISHED, Prior, find
from twinlib.tables.schemas import POPULATIONS, PROMOTIONS
from twinlib.tables.storage import Storage

PROMOTED = "promoted"


def chosen(storage: Storage, model: Model, version: str) -> Prior:
    """The prior that a configuration means by `version`. Raises ConfigError where there is none."""
    if version == PROMOTED:
        version = promoted(storage, model)
    return find(model, version, [] if version == PUBLISHED else storage.read(POPULATIONS).collect())


def promoted(storage: Storage, model: Model) -> str:
    """The version promoted last, the published one where none was."""
    last = storage.read(PROMOTIONS).where(F.col("model") == model.name).orderBy(F.desc("sequence")).first()
    return PUBLISHED if last is None else last.prior_version


def promote(storage: Storage, model: Model, version: str, comment: str) -> None:
    """Make `version` the one that nights use from now on. Raises ConfigError where it does not exist or is in use already."""
    with storage.writer():
        chosen(storage, model, version)
        before = promoted(storage, model)
        if version == before:
            raise ConfigError(f"prior version {version} of model {model.name} is in use already")
        number = (storage.read(PROMOTIONS).where(F.col("model") == model.name).agg(F.max("sequence")).first()[0] or 0) + 1
        row = (model.name, number, version, before, comment, datetime.now(timezone.utc))
        storage.append(PROMOTIONS, storage.spark.createDataFrame([row], PROMOTIONS.schema))


@dataclass(frozen=True)
class Shift:
    """One parameter of two priors: natural medians, transformed SDs, and the way from one mean to the other in old SDs."""

    parameter: str
    median: tuple[float, float]
    sd: tuple[float, float]
    shift: float


@dataclass(frozen=True)
class Comparison:
    """What a promotion would change: parameter by parameter, and how well both priors expect the twins that stand.

    log_evidence_gain: sum over twins of the log ratio of their marginal likelihoods, new over old, by reweighting the stored draws;
    worst_effective_share: the smallest effective share of a twin's draws in that (the sum means little where it is below a tenth).
    """

    shifts: tuple[Shift, ...]
    twins: int
    log_evidence_gain: float
    worst_effective_share: float


def compare(model: Model, old: Prior, new: Prior, twins: DataFrame) -> Comparison:
    """twins: TWINS rows; those of this model that were fitted under `old` are used."""
    shifts = tuple(
        Shift(q.name, (float(q.natural(a)), float(q.natural(b))), (float(s), float(t)), float((b - a) / s))
        for q, a, b, s, t in zip(model.fitted, old.mean, new.mean, old.sd, new.sd)
    )
    own = twins.where((F.col("model") == model.name) & (F.col("prior_version") == old.version) & (F.col("status") == "converged"))

    def weigh(batches):
        for batch in batches:
            found = [reweighted(np.array(d).reshape(-1, len(old.mean)), old, new) for d in batch.column(0).to_pylist()]
            gain, share = (np.array([f[k] for f in found]) for k in (0, 1))
            yield pa.RecordBatch.from_pydict({"gain": gain, "share": share})

    total = own.select("draws").mapInArrow(weigh, "gain double, share double").agg(F.count(F.lit(1)), F.sum("gain"), F.min("share")).first()
    return Comparison(shifts, total[0], float(total[1] or 0.0), float(total[2] if total[2] is not None else 1.0))


def reweighted(draws: np.ndarray, old: Prior, new: Prior) -> tuple[float, float]:
    """Log marginal likelihood under `new` minus that under `old`, and the effective share of the draws, from posterior draws [K, p]
    under `old`: E over the posterior of new(theta) / old(theta) (importance sampling identity)."""

    def log_density(prior: Prior) -> np.ndarray:
        return -0.5 * (((draws - prior.mean) / prior.sd) ** 2).sum(1) - np.log(prior.sd).sum()

    ratio = log_density(new) - log_density(old)
    weights = np.exp(ratio - ratio.max())
    return float(ratio.max() + np.log(weights.mean())), float(weights.sum() ** 2 / (weights**2).sum() / len(weights))
