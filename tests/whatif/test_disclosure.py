"""An attacker who knows what is published and how it was made finds no small count."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from twinlib.whatif.disclosure import suppression
from twinlib.whatif.publish import EVERYBODY, MATCHED, TWIN, effect_rows, mark, protected


def attack(sets, atoms, hidden, target):
    """Least and greatest count of a target, by a linear program of the attacker's own making: counts of atoms are not negative, published
    counts hold, and what is not published is at least one."""
    a_ub, b_ub = -sets[hidden].astype(float), -np.ones(hidden.sum())
    ends = []
    for sign in (1, -1):
        found = linprog(
            sign * target.astype(float), A_eq=sets[~hidden].astype(float), b_eq=(sets[~hidden] @ atoms).astype(float), bounds=(0, atoms.sum()),
            A_ub=a_ub if len(a_ub) else None, b_ub=b_ub if len(b_ub) else None,
        )
        ends.append(sign * found.fun)
    return ends


def exposed(sets, atoms, hidden, smallest=11):
    """Small counts that come out exactly: of sets, and of differences and intersections of two."""
    pairs = list(itertools.product(range(len(sets)), repeat=2))
    targets = [*sets, *[sets[i] & ~sets[j] for i, j in pairs], *[sets[i] & sets[j] for i, j in pairs]]
    small = {t.tobytes(): t for t in targets if 1 <= t @ atoms < smallest}
    found = [attack(sets, atoms, hidden, t) for t in small.values()]
    return sum(high - low < 0.5 for low, high in found)


def test_a_small_cell_takes_another_with_it():
    whole, parts = np.ones((1, 3), bool), np.eye(3, dtype=bool)
    assert suppression(np.concatenate([whole, parts]), np.array([40, 30, 5]), 11).tolist() == [False, False, True, True]
    assert suppression(np.concatenate([whole, parts]), np.array([40, 30, 11]), 11).tolist() == [False] * 4
    assert suppression(np.concatenate([whole, parts]), np.array([40, 30, 0]), 11).tolist() == [False] * 4  # nobody is no secret
    assert suppression(np.concatenate([whole, parts]), np.array([40, 30, 5]), 6).tolist() == [False, False, True, True]
    assert not suppression(np.concatenate([whole, parts]), np.array([4, 3, 5]), 1).any()


def test_nested_cohorts_do_not_give_away_their_difference():
    sets = np.array([[True, True], [True, False]])  # a cohort, and all of it but three
    hidden = suppression(sets, np.array([50, 3]), 11)
    assert hidden.sum() == 1 and exposed(sets, np.array([50, 3]), hidden) == 0
    assert exposed(sets, np.array([50, 3]), np.zeros(2, bool)) > 0  # the attack works where nothing is done


@pytest.mark.parametrize("seed", range(6))
def test_nothing_can_be_recovered_from_random_cohorts(seed):
    rng = np.random.default_rng(seed)
    patients = int(rng.integers(40, 150))
    member = rng.random((6, patients)) < rng.uniform(0.1, 0.9, (6, 1))
    member[0] = True
    member[5] = member[1] & (rng.random(patients) < 0.9)  # nested
    atoms, counts = np.unique(member.T, axis=0, return_counts=True)
    sets = atoms.T
    hidden = suppression(sets, counts, 11)
    n = sets @ counts
    assert hidden[(n >= 1) & (n < 11)].all() and exposed(sets, counts, hidden) == 0
    order = rng.permutation(6)
    assert (suppression(sets[order], counts, 11).sum()) == hidden.sum()


def test_published_rows_hold_no_number_of_a_suppressed_group():
    groups = [("all_ages", "all"), ("all_ages", "sex=female"), ("all_ages", "sex=male"), ("all_ages", "sex=unknown")]
    value = mark("s", "tir")
    atoms = [
        ([groups[0], groups[1]], [MATCHED, TWIN, value], 40), ([groups[0], groups[2]], [MATCHED, TWIN, value], 30),
        ([groups[0], groups[3]], [MATCHED, TWIN, value], 5), ([groups[0], groups[2]], [MATCHED], 3),
    ]
    shown = protected(atoms, [value], 11)
    found = [dict(zip(("cohort", "subgroup"), g)) | {"scenario": "s", "outcome": "tir", "effect_mean": 1.0, "p_value": 0.01} for g in groups]

    class Like(dict):
        asDict = dict.copy

    rows = {r["subgroup"]: r for r in effect_rows([Like(f) for f in found], groups, ["s"], {"tir": "%"}, shown)}
    unknown = rows["sex=unknown"]
    assert unknown["suppressed"] and unknown["n_patients"] is None and "effect_mean" not in unknown and "q_value" not in unknown
    hidden = [r for r in rows.values() if r["suppressed"]]
    assert len(hidden) >= 2 and all("effect_mean" not in r for r in hidden)  # the rest by subtraction would be the small group
    # men matched and men with a value differ by three: at most one of the two counts is shown, whatever else is
    assert rows["sex=male"]["n_matched"] is None or rows["sex=male"]["n_patients"] is None
    open_rows = [r for r in rows.values() if not r["suppressed"]]
    assert all(r["comparisons"] == len(open_rows) and r["q_value"] == pytest.approx(0.01) for r in open_rows)
    everything = protected(atoms, [value], 1)
    assert everything.count(EVERYBODY, MATCHED) == 78 and everything.count(groups[3], value) == 5 and not everything.hidden
