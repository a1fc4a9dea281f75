"""Disclosure control of published counts: small cells are suppressed, and others with them so that subtraction does not bring them back.

Every published count is that of a set of patients. Patients who are in the same sets form an atom; an attacker knows the sets' definitions,
the published counts, and that a suppressed count is not zero, and solves for the atoms. What must not come out is any set, difference or
intersection of two sets with 1 to `smallest` - 1 patients. Rule on small cells: CMS cell size suppression policy (2020); audit by linear
programming and complementary suppression: Fischetti & Salazar 2001 (10.1287/mnsc.47.7.1008.9805), greedy instead of optimal.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

_EXACT = 0.5  # an attacker whose bounds on a count are closer than this knows it


def small(counts: np.ndarray, smallest: int) -> np.ndarray:
    """Which counts may not be published by themselves."""
    return (counts >= 1) & (counts < smallest)


def bounds(target: np.ndarray, sets: np.ndarray, counts: np.ndarray, suppressed: np.ndarray) -> tuple[float, float, np.ndarray]:
    """What an attacker knows of the count of a target.

    target (atoms,) 0/1; sets (sets, atoms) 0/1; counts (sets,); suppressed (sets,). Returns the least and the greatest count that agrees with
    all that is published, and how much each published set matters for that (sets,).
    """
    published = ~suppressed
    equal, right = csr_matrix(sets[published].astype(float)), counts[published].astype(float)
    hidden = sets[suppressed].astype(float)
    more = {"A_ub": csr_matrix(-hidden), "b_ub": -np.ones(len(hidden))} if len(hidden) else {}
    ends, weight = [], np.zeros(len(sets))
    for sign in (1.0, -1.0):
        found = linprog(sign * target, A_eq=equal, b_eq=right, bounds=(0, None), method="highs", **more)
        ends.append(sign * found.fun if found.status == 0 else sign * -np.inf)
        if found.status == 0:
            weight[published] += np.abs(found.eqlin.marginals)
    return ends[0], ends[1], weight


def _targets(sets: np.ndarray, atoms: np.ndarray, smallest: int) -> Iterator[np.ndarray]:
    """Sets, differences and intersections of two, with a small count; each once."""
    known = set()
    for i in range(len(sets)):
        rows = [sets[i : i + 1], sets[i] & ~sets, sets[i] & sets]
        for candidate in np.concatenate(rows)[small(np.concatenate([r @ atoms for r in rows]), smallest)]:
            if (text := candidate.tobytes()) not in known:
                known.add(text)
                yield candidate


def suppression(sets: np.ndarray, atoms: np.ndarray, smallest: int, worth: np.ndarray | None = None) -> np.ndarray:
    """(sets,) which of the sets' counts to suppress.

    sets (sets, atoms) boolean: which atoms each set is made of; atoms (atoms,) counts of patients; worth (sets,): sets of less worth are
    suppressed first where several would do. Sets that hold the same atoms share their fate. smallest = 1 suppresses nothing.
    """
    unique, which = np.unique(sets, axis=0, return_inverse=True)
    value = np.zeros(len(unique))
    np.maximum.at(value, which.ravel(), np.zeros(len(sets)) if worth is None else worth)
    counts = unique @ atoms
    hidden = small(counts, smallest)
    targets = list(_targets(unique, atoms, smallest)) if smallest > 1 else []
    checking = True
    while checking:  # again after a suppression, which adds the knowledge that a count is not zero
        checking = False
        for target in targets:
            low, high, weight = bounds(target.astype(float), unique, counts, hidden)
            while high - low < _EXACT:
                open_ = ~hidden & (counts > 0)
                matters = np.flatnonzero((weight > 1e-9) & open_)
                matters = matters if matters.size else np.flatnonzero((unique & target).any(axis=1) & open_)
                if not matters.size:
                    break  # nothing is published that bears on it
                hidden[matters[np.lexsort((counts[matters], value[matters]))[0]]] = checking = True
                low, high, weight = bounds(target.astype(float), unique, counts, hidden)
    return hidden[which.ravel()]
