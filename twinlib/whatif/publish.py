"""Published tables of cohorts: which counts and rows may be shown, and what many comparisons do to their evidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from twinlib.whatif.bootstrap import benjamini_hochberg
from twinlib.whatif.disclosure import suppression

MATCHED, TWIN = "matched", "twin"  # marks of a patient; others are those of the tables
EVERYBODY = ("", "")  # the group of all patients
Group = tuple[str, str]  # cohort and subgroup


@dataclass(frozen=True)
class Cells:
    """Counts of patients by group and mark; None where one is suppressed."""

    counts: dict[tuple[Group, str], int]
    hidden: frozenset[tuple[Group, str]]

    def count(self, group: Group, mark: str) -> int | None:
        return None if (group, mark) in self.hidden else self.counts.get((group, mark), 0)


def marks(frame: DataFrame, *tables: DataFrame) -> DataFrame:
    """Rows (patient_id, mark): everybody is MATCHED, those with a converged twin have TWIN, the rest are `tables` of the same form."""
    everybody = frame.select("patient_id", F.lit(MATCHED).alias("mark"))
    out = everybody.union(frame.where("status = 'converged'").select("patient_id", F.lit(TWIN)))
    for table in tables:
        out = out.union(table.select("patient_id", "mark"))
    return out


def cells(members: DataFrame, marked: DataFrame, wanted: Iterable[str], smallest: int) -> Cells:
    """The counts of all groups and marks in `wanted`, with those suppressed that must be.

    members: rows (cohort, subgroup, patient_id); marked: rows (patient_id, mark). Collects one row per combination of groups and marks that
    some patient has.
    """
    groups = members.groupBy("patient_id").agg(F.sort_array(F.collect_set(F.struct("cohort", "subgroup"))).alias("groups"))
    having = marked.groupBy("patient_id").agg(F.sort_array(F.collect_set("mark")).alias("marks"))
    rows = having.join(groups, "patient_id", "left").groupBy("groups", "marks").count().collect()
    return protected(((tuple((g[0], g[1]) for g in r["groups"] or ()), r["marks"], r["count"]) for r in rows), wanted, smallest)


def protected(atoms: Iterable[tuple[Sequence[Group], Sequence[str], int]], wanted: Iterable[str], smallest: int) -> Cells:
    """Cells from atoms: (groups, marks, patients), each with distinct groups and marks."""
    atoms = sorted((tuple(g), tuple(m), n) for g, m, n in atoms)
    named = sorted({g for groups, _, _ in atoms for g in groups} | {EVERYBODY})
    pairs = [(g, m) for g in named for m in ([MATCHED] if g == EVERYBODY else dict.fromkeys([MATCHED, TWIN, *wanted]))]
    column = {g: np.array([g == EVERYBODY or g in groups for groups, _, _ in atoms], bool) for g in named}
    marked = {m: np.array([m in set(has) for _, has, _ in atoms], bool) for _, m in pairs}
    sets = np.array([column[g] & marked[m] for g, m in pairs], bool).reshape(len(pairs), len(atoms))
    counts = np.array([n for _, _, n in atoms], dtype=np.int64)
    worth = np.array([float(m != MATCHED) for _, m in pairs])  # who was looked for is told rather less than what was found
    hidden = suppression(sets, counts, smallest, worth)
    return Cells(dict(zip(pairs, (int(c) for c in sets @ counts))), frozenset(p for p, h in zip(pairs, hidden) if h))


def mark(scenario: str, outcome: str) -> str:
    """The mark of patients with a value of an outcome under a scenario."""
    return f"{scenario}|{outcome}"


def effect_rows(found: Iterable[Row], groups: Sequence[Group], scenarios: Sequence[str], units: dict[str, str], shown: Cells) -> list[dict]:
    """Rows of COHORT_EFFECTS from those of `effects.summaries`: one for every group, scenario and outcome, whether or not there is a value.

    q_value: Benjamini & Hochberg over all published rows with a value; comparisons: their number.
    """
    by_key = {(r["cohort"], r["subgroup"], r["scenario"], r["outcome"]): r.asDict() for r in found}
    rows = []
    for cohort, subgroup in groups:
        about = _about((cohort, subgroup), shown)
        for scenario in scenarios:
            for outcome, unit in units.items():
                n = shown.count((cohort, subgroup), mark(scenario, outcome))
                key = {"cohort": cohort, "subgroup": subgroup, "scenario": scenario, "outcome": outcome}
                values = by_key.get(tuple(key.values()), {}) if n else {}
                rows.append(values | key | about | {"unit": unit, "n_patients": n, "suppressed": n is None})
    compared = [r for r in rows if r.get("p_value") is not None]
    for r, q in zip(compared, benjamini_hochberg(np.array([r["p_value"] for r in compared]))):
        r["q_value"], r["comparisons"] = float(q), len(compared)
    return rows


def _about(group: Group, shown: Cells) -> dict[str, int | None]:
    return {"n_all": shown.count(EVERYBODY, MATCHED), "n_matched": shown.count(group, MATCHED), "n_with_twin": shown.count(group, TWIN)}


def policy_rows(found: Iterable[Row], groups: Sequence[Group], names: dict[str, tuple[str, str]], shown: Cells) -> list[dict]:
    """Rows of COHORT_POLICIES from those of `recommend.policies`; names: recommendation -> (objective, unit)."""
    by_key = {(r["cohort"], r["subgroup"], r["recommendation"]): r.asDict() for r in found}
    rows = []
    for cohort, subgroup in groups:
        for name, (objective, unit) in names.items():
            key = {"cohort": cohort, "subgroup": subgroup, "recommendation": name}
            n, changed = (shown.count((cohort, subgroup), m) for m in (f"advised|{name}", f"changed|{name}"))
            values = by_key.get(tuple(key.values()), {}) if n else {}
            counts = {"n_patients": n, "n_changed": changed if n is not None else None}
            rows.append(values | key | _about((cohort, subgroup), shown) | counts | {"objective": objective, "unit": unit, "suppressed": n is None})
    return rows
