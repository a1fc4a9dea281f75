"""Which prior version the nights use: a version is learned, compared, and promoted by hand; until then nothing changes.

`fit: {prior_version: promoted}` follows the newest row of `promotions`; a fixed name stays with that version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from twinlib.engine.contract import Model
from twinlib.errors import ConfigError
from twinlib.population.estimate import population_level
from twinlib.population.priors import PROMOTED, PUBLISHED, Prior, find
from twinlib.tables.schemas import POPULATION_EFFECTS, POPULATION_FITS, POPULATIONS, PROMOTIONS
from twinlib.tables.storage import Storage


def chosen(storage: Storage, model: Model, version: str) -> Prior:
    """The prior that a configuration means by `version`. Raises ConfigError where there is none, or learning did not arrive at it."""
    if version == PROMOTED:
        version = promoted(storage, model)
    tables = (POPULATION_FITS, POPULATIONS, POPULATION_EFFECTS) if version != PUBLISHED else ()
    stored = [[r.asDict() for r in storage.read(t).where(F.col("model") == model.name).collect()] for t in tables]
    return find(model, version, *(stored or ([], [], [])))


def promoted(storage: Storage, model: Model) -> str:
    """The version promoted last, the published one where none was."""
    last = storage.read(PROMOTIONS).where(F.col("model") == model.name).orderBy(F.desc("sequence")).first()
    return PUBLISHED if last is None else last.prior_version


def promote(storage: Storage, model: Model, version: str, comment: str) -> str:
    """Make `version` the one that nights use from now on; returns its full name (`learned` means the newest).

    Raises ConfigError where it does not exist or is in use already.
    """
    with storage.writer():
        version, before = chosen(storage, model, version).version, promoted(storage, model)
        if version == before:
            raise ConfigError(f"prior version {version} of model {model.name} is in use already")
        number = (storage.read(PROMOTIONS).where(F.col("model") == model.name).agg(F.max("sequence")).first()[0] or 0) + 1
        row = (model.name, number, version, before, comment, datetime.now(UTC))
        storage.append(PROMOTIONS, storage.spark.createDataFrame([row], PROMOTIONS.schema))
        return version


@dataclass(frozen=True)
class Shift:
    """One parameter of two priors: natural medians, transformed SDs, and the way from one mean to the other in old SDs.

    A parameter that all patients share has no SD: its `sd` is (0, 0), its `shift` NaN.
    """

    parameter: str
    median: tuple[float, float]
    sd: tuple[float, float]
    shift: float


@dataclass(frozen=True)
class Comparison:
    """What a promotion would change: parameter by parameter, and how well both priors expect the twins that stand.

    effects: names of the covariate columns, old and new; log_evidence_gain: sum over twins of the log ratio of their marginal likelihoods, new
    over old, by reweighting the stored draws, None where a value that all patients share differs (the stored draws know nothing of the
    likelihood under another one); worst_effective_share: the smallest effective share of a twin's draws in that (the sum means little
    where it is below a tenth).
    """

    shifts: tuple[Shift, ...]
    effects: tuple[tuple[str, ...], tuple[str, ...]]
    twins: int
    log_evidence_gain: float | None
    worst_effective_share: float


def compare(model: Model, old: Prior, new: Prior, twins: DataFrame, timelines: DataFrame) -> Comparison:
    """twins: TWINS rows, of which those of this model that were fitted under `old` are used; timelines: TIMELINES, for their covariates."""
    shifts = [
        Shift(q.name, (float(q.natural(a)), float(q.natural(b))), (float(s), float(t)), float((b - a) / s))
        for q, a, b, s, t in zip(model.fitted, old.mean, new.mean, old.sd, new.sd)
    ]
    shared = [(q.name, *(float(p.values.get(q.name, q.median)) for p in (old, new))) for q in population_level(model)]
    shifts += [Shift(name, (a, b), (0.0, 0.0), np.nan) for name, a, b in shared]
    own = twins.where((F.col("model") == model.name) & (F.col("prior_version") == old.version) & (F.col("status") == "converged"))
    rows = own.select("patient_id", "model", "episode", "draws").join(timelines, ["patient_id", "model", "episode"])

    def weigh(batches):
        for batch in batches:
            found = [
                reweighted(np.array(draws).reshape(-1, len(old.mean)), {c["name"]: c["value"] for c in covariates}, old, new)
                for draws, covariates in zip(*(column.to_pylist() for column in batch.columns))
            ]
            yield pa.RecordBatch.from_pydict({k: np.array([f[i] for f in found]) for i, k in enumerate(("gain", "share"))})

    totals = rows.select("draws", "covariates").mapInArrow(weigh, "gain double, share double").agg(F.count(F.lit(1)), F.sum("gain"), F.min("share"))
    count, gain, share = totals.first()
    comparable = all(a == b for _, a, b in shared)
    names = tuple(tuple(c.name for c in p.columns) for p in (old, new))
    return Comparison(tuple(shifts), names, count, float(gain or 0.0) if comparable else None, float(share if share is not None else 1.0))


def reweighted(draws: np.ndarray, covariates: Mapping[str, float], old: Prior, new: Prior) -> tuple[float, float]:
    """Log marginal likelihood under `new` minus that under `old`, and the effective share of the draws, from posterior draws [K, p] under
    `old` of a patient with these covariates: E over the posterior of new(theta) / old(theta) (importance sampling identity)."""
    ratio = new.log_density(draws, covariates) - old.log_density(draws, covariates)
    weights = np.exp(ratio - ratio.max())
    return float(ratio.max() + np.log(weights.mean())), float(weights.sum() ** 2 / (weights**2).sum() / len(weights))
