"""Cohort effects: the mean over patients of what a scenario changes, by cohort and subgroup, with an interval over draws and patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from twinlib.whatif.bootstrap import REPLICATES, bootstrap_means, interval, p_value
from twinlib.whatif.outcomes import Outcome

GROUP = ("cohort", "subgroup", "scenario", "outcome")
_VALUES = (
    "factual_mean", "counterfactual_mean", "effect_mean", "effect_q05", "effect_q95", "p_value", "share_benefiting", "share_harmed",
    "target_difference", "target_difference_q05", "target_difference_q95", "number_needed_to_treat",
)
_SUMMARY = "cohort string, subgroup string, scenario string, outcome string, " + ", ".join(f"{v} double" for v in _VALUES)


def summarise(table: pa.Table, outcome: Outcome, replicates: int = REPLICATES) -> dict[str, float | None]:
    """Effect of one scenario on one outcome in one cohort.

    table: rows of OUTCOMES with status ok (columns patient_id, key, episode, factual, counterfactual_mean, effect_mean,
    effect_draws, factual_draws), one or more per patient; a patient's episodes are averaged first, draw by draw, so that each patient
    counts once. Raises ValueError where rows hold different numbers of draws.
    """
    table = table.sort_by([("patient_id", "ascending"), ("episode", "ascending")]).combine_chunks()
    first = np.flatnonzero(np.append(True, pc.not_equal(table["patient_id"][1:], table["patient_id"][:-1]).to_numpy()))
    episodes = np.diff(np.append(first, len(table)))
    lengths = pc.unique(pc.list_value_length(table["effect_draws"]))
    if len(lengths) != 1:
        raise ValueError(f"effect_draws of different lengths in one cohort: {sorted(lengths.to_pylist())}")

    def per_patient(values: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat(values.astype(np.float64), first, axis=0)
        return sums / (episodes if values.ndim == 1 else episodes[:, None])

    draws = per_patient(pc.list_flatten(table["effect_draws"]).to_numpy().reshape(len(table), -1))
    keys = table["key"].to_numpy()[first].view(np.uint64)
    replicate = bootstrap_means(draws, keys, replicates)
    low, high = interval(replicate)
    means = {c: per_patient(table[c].to_numpy()) for c in ("factual", "counterfactual_mean", "effect_mean")}
    better = outcome.better * draws
    shares = {"share_benefiting": float((better > 0).mean()), "share_harmed": float((better < 0).mean())} if outcome.better else {}
    if outcome.target is not None:
        lacking = table["factual_draws"].null_count
        factual = means["factual"][:, None] if lacking else per_patient(pc.list_flatten(table["factual_draws"]).to_numpy().reshape(len(table), -1))
        shares |= _on_target(factual, draws, outcome, keys, replicates)
    return {
        **{f"{c.removesuffix('_mean')}_mean": float(m.mean()) for c, m in means.items()},
        "effect_q05": low, "effect_q95": high, "p_value": 1.0 if (draws == 0).all() else p_value(replicate), **shares,
    }


def _on_target(factual: np.ndarray, effects: np.ndarray, outcome: Outcome, keys: np.ndarray, replicates: int) -> dict[str, float | None]:
    """Difference of the share of patients on target, in points, and the number needed to treat (negative: to harm) for one more on target.

    Its limits are 100 over those of the difference; where these differ in sign the number is unbounded (Altman 1998, 10.1136/bmj.317.7168.1309).
    """
    on = lambda x: outcome.better * (x - outcome.target) > 0  # noqa: E731
    difference = 100.0 * (on(factual + effects).astype(float) - on(factual))
    mean = float(difference.mean())
    low, high = interval(bootstrap_means(difference, keys, replicates))
    return {
        "target_difference": mean, "target_difference_q05": low, "target_difference_q95": high,
        "number_needed_to_treat": 100.0 / mean if mean else None,
    }


def summaries(outcomes: DataFrame, members: DataFrame, known: Sequence[Outcome], seed: int, replicates: int = REPLICATES) -> DataFrame:
    """One row of `summarise` for every cohort, subgroup, scenario and outcome that some patient has a value of.

    outcomes: OUTCOMES rows of one model, whose effect_draws are equally weighted; members: rows (cohort, subgroup, patient_id). One Arrow
    group per row, which holds patients x draws x 4 bytes.
    """
    by_name = {o.name: o for o in known}

    def of_group(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
        group = dict(zip(GROUP, (k.as_py() for k in key)))
        row = dict.fromkeys(_VALUES) | group | summarise(table, by_name[group["outcome"]], replicates)
        return pa.Table.from_pylist([{n: row[n] for n in (*GROUP, *_VALUES)}], schema=arrow)

    arrow = pa.schema([(g, pa.string()) for g in GROUP] + [(v, pa.float64()) for v in _VALUES])
    wanted = ("patient_id", "episode", "scenario", "outcome", "factual", "counterfactual_mean", "effect_mean", "effect_draws", "factual_draws")
    return (
        outcomes.where((F.col("status") == "ok") & F.col("outcome").isin(list(by_name)))
        .select(*wanted, F.xxhash64(F.lit(seed), "patient_id").alias("key"))
        .join(members, "patient_id")
        .groupBy(*GROUP)
        .applyInArrow(of_group, _SUMMARY)
    )
