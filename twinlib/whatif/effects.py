"""Cohort effects: the mean over patients of what a scenario changes, with an interval over draws and patients.

The interval comes from Rubin's Bayesian bootstrap (1981, 10.1214/aos/1176345338): replicate b takes every patient's
posterior draw b mod K and averages them with random weights, Exponential(1) per patient and normalised. So it covers both
what is not known of each twin and that other patients could have been sampled; where posteriors are wide it errs on the wide
side, as their spread also shows between patients. The weights are a function of seed, patient and replicate alone: they are
shared by all scenarios, and no order or partitioning of the data changes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from twinlib.tables.schemas import COHORT_EFFECTS
from twinlib.whatif.outcomes import OUTCOMES

REPLICATES = 1024
_BLOCK = 2048  # patients whose weights are held at once
_GROUP = ("cohort", "scenario", "outcome")
_SUMMARY = (
    "cohort string, scenario string, outcome string, n_patients long, factual_mean double, counterfactual_mean double, "
    "effect_mean double, effect_q05 double, effect_q95 double, share_benefiting double"
)


def exponential_weights(keys: np.ndarray, replicates: int) -> np.ndarray:
    """Exponential(1) numbers [n, replicates], row i a function of the 64-bit keys[i] (uint64) alone.

    Counter-based: SplitMix64 of Steele, Lea and Flood (2014, 10.1145/2660193.2660195), whose state `keys[i]` is advanced
    to every replicate at once.
    """
    with np.errstate(over="ignore"):
        z = keys[:, None] + np.arange(1, replicates + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return -np.log(((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)  # uniform on the open interval (0, 1)


def bootstrap_means(draws: np.ndarray, keys: np.ndarray, replicates: int = REPLICATES) -> np.ndarray:
    """Replicates [replicates] of the mean over patients of effects [n patients, K draws]; keys [n] (uint64), n >= 1."""
    of_replicate = np.arange(replicates) % draws.shape[1]
    total, weight = np.zeros(replicates), np.zeros(replicates)
    for start in range(0, len(draws), _BLOCK):
        block = slice(start, start + _BLOCK)
        w = exponential_weights(keys[block], replicates)
        total += (w * draws[block][:, of_replicate]).sum(axis=0)
        weight += w.sum(axis=0)
    return total / weight


def summarise(table: pa.Table, better: int, replicates: int = REPLICATES) -> dict[str, float | int]:
    """Effect of one scenario on one outcome in one cohort.

    table: rows of OUTCOMES with status ok (columns patient_id, key, episode, factual, counterfactual_mean, effect_mean,
    effect_draws), one or more per patient; a patient's episodes are averaged first, draw by draw, so that each patient
    counts once. Raises ValueError where rows hold different numbers of draws.
    """
    table = table.sort_by([("patient_id", "ascending"), ("episode", "ascending")]).combine_chunks()
    first = np.flatnonzero(np.append(True, pc.not_equal(table["patient_id"][1:], table["patient_id"][:-1]).to_numpy()))
    episodes = np.diff(np.append(first, len(table)))
    lengths = pc.unique(pc.list_value_length(table["effect_draws"]))
    if len(lengths) != 1:
        raise ValueError(f"effect_draws of different lengths in one cohort: {sorted(lengths.to_pylist())}")
    draws = pc.list_flatten(table["effect_draws"]).to_numpy().reshape(len(table), -1)

    def per_patient(values: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat(values.astype(np.float64), first, axis=0)
        return sums / (episodes if values.ndim == 1 else episodes[:, None])

    draws = per_patient(draws)
    replicate = bootstrap_means(draws, table["key"].to_numpy()[first].view(np.uint64), replicates)
    benefit = (better * draws > 0).mean(axis=1)
    low, high = np.quantile(replicate, [0.05, 0.95], method="weibull")
    means = {c: per_patient(table[c].to_numpy()).mean() for c in ("factual", "counterfactual_mean", "effect_mean")}
    return {
        "n_patients": len(first),
        "factual_mean": means["factual"],
        "counterfactual_mean": means["counterfactual_mean"],
        "effect_mean": means["effect_mean"],
        "effect_q05": float(low),
        "effect_q95": float(high),
        "share_benefiting": (benefit > 0.5).mean(),
    }


def cohort_effects(
    outcomes: DataFrame,
    members: DataFrame,
    attrition: DataFrame,
    scenarios: Sequence[str],
    seed: int,
    replicates: int = REPLICATES,
) -> DataFrame:
    """COHORT_EFFECTS: a row for every cohort of `attrition`, scenario and outcome; values are null where no patient has one.

    outcomes: OUTCOMES rows of one model, whose effect_draws are equally weighted; members and attrition: of
    `twinlib.whatif.cohorts`. One Arrow group per cohort, scenario and outcome, which holds patients x draws x 4 bytes.
    """
    better = {o.name: o.better for o in OUTCOMES}
    units = {o.name: o.unit for o in OUTCOMES}

    def of_group(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
        cohort, scenario, outcome = (k.as_py() for k in key)
        row = {"cohort": cohort, "scenario": scenario, "outcome": outcome} | summarise(table, better[outcome], replicates)
        return pa.Table.from_pylist([row])

    effects = (
        outcomes.where((F.col("status") == "ok") & F.col("outcome").isin(list(better)) & F.col("scenario").isin(list(scenarios)))
        .select("patient_id", "episode", "scenario", "outcome", "factual", "counterfactual_mean", "effect_mean", "effect_draws")
        .withColumn("key", F.xxhash64(F.lit(seed), "patient_id"))
        .join(members, "patient_id")
        .groupBy(*_GROUP)
        .applyInArrow(of_group, _SUMMARY)
    )
    cells = F.array(
        *[
            F.struct(F.lit(s).alias("scenario"), F.lit(o).alias("outcome"), F.lit(u).alias("unit"))
            for s in scenarios
            for o, u in units.items()
        ]
    )
    grid = attrition.select("cohort", "n_matched", F.inline(cells))
    filled = grid.join(effects, list(_GROUP), "left").fillna(0, ["n_patients"])
    return COHORT_EFFECTS.conform(filled)
