"""Personalised treatment: per patient the best of some scenarios under an objective and safety constraints, or no change.

All on posterior draws of what the scenarios would do. A policy is safe where each constraint is violated with less than its probability. Of
the safe ones the best has the greatest expected gain of the objective; it is recommended where that exceeds `minimum_gain` and the
probability that it beats current care is at least `credible`. What is compared is expected, so picking the greatest needs no further
correction as long as the posterior is right (Senn 2008 on Dawid's argument, 10.1080/00031305.1994.10476021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from twinlib.config import RecommendConfig
from twinlib.errors import ConfigError
from twinlib.tables.schemas import RECOMMENDATIONS
from twinlib.whatif.bootstrap import REPLICATES, bootstrap_means, interval
from twinlib.whatif.outcomes import Outcome

_POLICY = ("gain_personalised", "gain_one_size", "gain_of_personalising")
_VALUES = ("one_size", *[f"{p}_{s}" for p in _POLICY for s in ("mean", "q05", "q95")])
_SUMMARY = "cohort string, subgroup string, recommendation string, one_size string, " + ", ".join(f"{v} double" for v in _VALUES[1:])


@dataclass(frozen=True)
class Policies:
    """A checked recommendation: its scenarios in the file's order, direction and unit of the objective."""

    config: RecommendConfig
    scenarios: tuple[str, ...]
    better: int
    unit: str

    @classmethod
    def of(cls, config: RecommendConfig, scenarios: Sequence[str], outcomes: Sequence[Outcome]) -> Policies:
        """Raises ConfigError where a scenario, the objective or a constraint is unknown."""
        place, known = f"recommend {config.name}", {o.name: o for o in outcomes}
        for pattern in config.scenarios:
            if not any(fnmatchcase(s, pattern) for s in scenarios):
                raise ConfigError(f"{place}: scenarios: no scenario is called {pattern}")
        for name in (config.objective, *[s.outcome for s in config.safety]):
            if name not in known:
                raise ConfigError(f"{place}: unknown outcome {name}; known are {', '.join(known)}")
        if not known[config.objective].better:
            raise ConfigError(f"{place}: objective {config.objective}: neither direction of it is better")
        chosen = tuple(s for s in scenarios if any(fnmatchcase(s, p) for p in config.scenarios))
        return cls(config, chosen, known[config.objective].better, known[config.objective].unit)


@dataclass(frozen=True)
class Options:
    """What is known of each patient's options: gains (patients, policies, draws) of the objective, positive = better; risks (patients, policies,
    constraints) probabilities of violation; NaN where the patient has no value. factual (patients,); keys (patients,) of the bootstrap."""

    patients: list[str]
    factual: np.ndarray
    gains: np.ndarray
    risks: np.ndarray
    extrapolation: list[list[str | None]]
    keys: np.ndarray

    @property
    def possible(self) -> np.ndarray:
        """(patients, policies)."""
        return ~np.isnan(self.gains).any(axis=2) & ~np.isnan(self.risks).any(axis=2)


def options(table: pa.Table, policies: Policies) -> Options:
    """Options from rows of OUTCOMES (status ok, with `key`) of the objective and the constraints; a patient's episodes are averaged."""
    rows = table.select(["patient_id", "episode", "scenario", "outcome", "factual", "effect_draws", "factual_draws", "extrapolation", "key"])
    rows = sorted(rows.to_pylist(), key=lambda r: (r["patient_id"], r["episode"]))
    patients = sorted({r["patient_id"] for r in rows})
    row_of, column_of = {p: i for i, p in enumerate(patients)}, {s: j for j, s in enumerate(policies.scenarios)}
    sums: dict[tuple[int, int, str], list] = {}  # (patient, policy, outcome) -> [episodes, effects, counterfactuals]
    factual: dict[int, dict[str, float]] = {}
    keys = np.zeros(len(patients), np.uint64)
    beyond: list[list[str | None]] = [[None] * len(column_of) for _ in patients]
    for r in rows:
        p, s = row_of[r["patient_id"]], column_of[r["scenario"]]
        effects = np.array(r["effect_draws"], dtype=np.float64)
        base = r["factual"] if r["factual_draws"] is None else np.array(r["factual_draws"], dtype=np.float64)
        one = sums.setdefault((p, s, r["outcome"]), [0, 0.0, 0.0])
        one[0], one[1], one[2] = one[0] + 1, one[1] + effects, one[2] + base + effects
        if r["outcome"] == policies.config.objective:
            factual.setdefault(p, {})[r["episode"]] = r["factual"]
            beyond[p][s] = beyond[p][s] or r["extrapolation"]
        keys[p] = np.int64(r["key"]).view(np.uint64)
    draws = max((len(one[1]) for one in sums.values()), default=1)
    gains = np.full((len(patients), len(column_of), draws), np.nan)
    risks = np.full((len(patients), len(column_of), len(policies.config.safety)), np.nan)
    for (p, s, outcome), (n, effects, levels) in sums.items():
        if outcome == policies.config.objective:
            gains[p, s] = policies.better * effects / n
        for c, safety in enumerate(policies.config.safety):
            if safety.outcome == outcome:
                level = levels / n
                risks[p, s, c] = (level > safety.above if safety.above is not None else level < safety.below).mean()
    means = np.array([np.mean(list(factual[p].values())) if p in factual else np.nan for p in range(len(patients))])
    return Options(patients, means, gains, risks, beyond, keys)


@dataclass(frozen=True)
class Choice:
    """Per patient: best safe policy (-1 = none), whether it is recommended, safe (patients, policies)."""

    best: np.ndarray
    change: np.ndarray
    safe: np.ndarray

    def gains(self, o: Options) -> np.ndarray:
        """(patients, draws) gain of following the advice: nothing where it is no change."""
        chosen = o.gains[np.arange(len(self.best)), np.maximum(self.best, 0)]
        return np.where(self.change[:, None], chosen, 0.0)


def choose(o: Options, config: RecommendConfig) -> Choice:
    """The best safe policy of each patient, and whether it is credibly better than current care."""
    limits = np.array([s.probability for s in config.safety])
    safe = o.possible & (np.nan_to_num(o.risks, nan=np.inf) < limits).all(axis=2)
    expected = np.where(safe, o.gains.mean(axis=2), -np.inf)
    best = np.where(safe.any(axis=1), expected.argmax(axis=1), -1)
    gains = o.gains[np.arange(len(best)), np.maximum(best, 0)]
    with np.errstate(invalid="ignore"):
        change = (best >= 0) & (expected.max(axis=1) > config.minimum_gain) & ((gains > 0).mean(axis=1) >= config.credible)
    return Choice(best, change, safe)


def advice(o: Options, policies: Policies) -> list[dict]:
    """Rows of RECOMMENDATIONS (without model and name) of all patients."""
    choice, out = choose(o, policies.config), []
    for p, patient in enumerate(o.patients):
        best, possible, safe = int(choice.best[p]), o.possible[p], choice.safe[p]
        row = {
            "patient_id": patient, "n_policies": int(possible.sum()), "n_safe": int(safe.sum()),
            "factual": None if np.isnan(o.factual[p]) else float(o.factual[p]), "scenario": None, "best": None,
        }
        if not possible.any():
            out.append(row | {"status": "insufficient_data", "reason": "no policy has a value"})
            continue
        if best < 0:
            out.append(row | {"status": "no_change", "reason": "no policy is safe"})
            continue
        gains = o.gains[p, best]
        others = np.where(safe[:, None], o.gains[p], -np.inf).max(axis=0)
        low, high = interval(gains)
        row |= {
            "best": policies.scenarios[best], "gain_mean": float(gains.mean()), "gain_q05": low, "gain_q95": high,
            "probability_beats_current": float((gains > 0).mean()), "probability_best": float((gains >= np.maximum(others, 0.0)).mean()),
            "extrapolation": o.extrapolation[p][best],
        }
        if choice.change[p]:
            out.append(row | {"status": "change", "reason": None, "scenario": policies.scenarios[best]})
        else:
            out.append(row | {"status": "no_change", "reason": "nothing is credibly better"})
    return out


def one_size(o: Options, policies: Policies) -> int:
    """The one policy that is best for all: the greatest mean gain of those that violate no constraint in more than its share of patients;
    -1 = none beats no change. A patient for whom a policy is not possible stays as is."""
    gain = np.where(o.possible, o.gains.mean(axis=2), 0.0).mean(axis=0)
    risk = np.where(o.possible[:, :, None], o.risks, 0.0).mean(axis=0)
    allowed = (risk < np.array([s.probability for s in policies.config.safety])).all(axis=1) & o.possible.any(axis=0)
    best = int(np.where(allowed, gain, -np.inf).argmax())
    return best if allowed[best] and gain[best] > 0 else -1


def cohort_gains(o: Options, policies: Policies, replicates: int = REPLICATES) -> dict[str, float | str | None]:
    """Mean gain of personalised advice, of the one policy for all, and of the one over the other, with intervals over patients and draws."""
    best = one_size(o, policies)
    personal = choose(o, policies.config).gains(o)
    same = np.where(o.possible[:, best, None], o.gains[:, best], 0.0) if best >= 0 else np.zeros_like(personal)
    out: dict[str, float | str | None] = {"one_size": policies.scenarios[best] if best >= 0 else None}
    for name, gains in zip(_POLICY, (personal, same, personal - same)):
        low, high = interval(bootstrap_means(gains, o.keys, replicates))
        out |= {f"{name}_mean": float(gains.mean()), f"{name}_q05": low, f"{name}_q95": high}
    return out


def _rows(outcomes: DataFrame, policies: Policies, seed: int) -> DataFrame:
    """The rows of `outcomes` that the policies are judged by."""
    wanted = {policies.config.objective, *[s.outcome for s in policies.config.safety]}
    return outcomes.where(
        (F.col("status") == "ok") & F.col("outcome").isin(*wanted) & F.col("scenario").isin(*policies.scenarios)
    ).withColumn("key", F.xxhash64(F.lit(seed), "patient_id"))


def recommendations(outcomes: DataFrame, policies: Policies, seed: int, partitions: int) -> DataFrame:
    """RECOMMENDATIONS of one configured recommendation: a row for every patient of `outcomes` with a value of the objective."""
    arrow, name, objective = to_arrow_schema(RECOMMENDATIONS.schema, timezone="UTC"), policies.config.name, policies.config.objective

    def of_bucket(table: pa.Table) -> pa.Table:
        same = {"recommendation": name, "objective": objective, "unit": policies.unit, "model": table["model"][0].as_py() if len(table) else None}
        return pa.Table.from_pylist([row | same for row in advice(options(table, policies), policies)], schema=arrow)

    bucket = F.pmod(F.xxhash64("patient_id"), F.lit(partitions * 4))
    found = _rows(outcomes, policies, seed).groupBy(bucket).applyInArrow(of_bucket, RECOMMENDATIONS.schema)
    return RECOMMENDATIONS.conform(found)


def policies_of_cohorts(outcomes: DataFrame, members: DataFrame, policies: Policies, seed: int, replicates: int = REPLICATES) -> DataFrame:
    """`cohort_gains` of every cohort and subgroup; one Arrow group each, which holds patients x policies x draws x 8 bytes."""
    columns = ("cohort", "subgroup", "recommendation", *_VALUES)
    arrow = pa.schema([(c, pa.string() if c in columns[:4] else pa.float64()) for c in columns])

    def of_group(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
        group = {"cohort": key[0].as_py(), "subgroup": key[1].as_py(), "recommendation": policies.config.name}
        return pa.Table.from_pylist([group | cohort_gains(options(table, policies), policies, replicates)], schema=arrow)

    return _rows(outcomes, policies, seed).join(members, "patient_id").groupBy("cohort", "subgroup").applyInArrow(of_group, _SUMMARY)


MARKS = ("advised", "changed")  # of patients, for the published counts


def marks(recommendations: DataFrame) -> DataFrame:
    """Rows (patient_id, mark) of the patients who have a recommendation, and of those who are advised a change."""
    known = recommendations.where("status <> 'insufficient_data'")
    of = lambda df, word: df.select("patient_id", F.concat(F.lit(f"{word}|"), "recommendation").alias("mark"))  # noqa: E731
    return of(known, MARKS[0]).union(of(known.where("status = 'change'"), MARKS[1]))
