"""Patients with several episodes as one unit of the engine: what a patient has in all episodes, and what differs between them.

The parameters of a patient with J episodes are theta = (p patient-level values, then q deviations for each episode); episode j has the
patient-level values plus its deviations, of the parameters that the model declares at level `occasion`. `Patients` and `PatientKernel` stand
in for the engine's `Data` and `Kernel` in its mode finder and sampler.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from twinlib.engine.contract import Model
from twinlib.engine.kernel import Data, Kernel, ranges


def with_values(kernel: Kernel, values: dict[str, float]) -> Kernel:
    """The kernel with other values (natural scale) of its population-level parameters; the same compiled code."""
    if not values:
        return kernel
    model, out = copy(kernel.model), copy(kernel)
    model.parameters = tuple(replace(q, median=values[q.name]) if q.name in values else q for q in model.parameters)
    out.model = model
    return out


def occasion_columns(model: Model) -> np.ndarray:
    """Positions, among the fitted parameters, of those that differ between a patient's episodes."""
    return np.array([j for j, q in enumerate(model.fitted) if q.level == "occasion"], int)


@dataclass(frozen=True)
class Patients:
    """Episodes (rows of `data`) by patient: patient i has the rows at[i]..at[i+1]."""

    data: Data
    at: np.ndarray

    def __len__(self) -> int:
        return len(self.at) - 1

    @property
    def episodes(self) -> np.ndarray:
        return np.diff(self.at)

    def take(self, rows) -> Patients:
        counts = self.episodes[rows]
        return Patients(self.data.take(ranges(self.at[:-1][rows], counts)), np.concatenate([[0], np.cumsum(counts)]))

    def coarse(self, longest: float) -> Patients:
        """The same with longer steps (see Data)."""
        return replace(self, data=self.data.coarse(longest))

    @property
    def lengths(self) -> np.ndarray:
        return self.data.lengths

    def counts(self) -> np.ndarray:
        """(patients,) number of readings."""
        return np.add.reduceat(self.data.counts(), self.at[:-1])


@dataclass(frozen=True)
class PatientKernel:
    """Likelihood and derivatives of whole patients; `columns`: see occasion_columns. With columns, all patients of one call must have the
    same number of episodes."""

    kernel: Kernel
    columns: np.ndarray

    @property
    def search_step(self) -> float:
        return self.kernel.search_step

    def _expanded(self, theta, who, patients: Patients):
        """Per episode of every lane: its parameters, its row of the data, and where each lane begins."""
        p, q = len(self.kernel.model.fitted), len(self.columns)
        counts = patients.episodes[who]
        owner = np.repeat(np.arange(len(who)), counts)
        rows = ranges(patients.at[:-1][who], counts)
        begin = np.cumsum(counts) - counts
        episode = np.arange(len(rows)) - np.repeat(begin, counts)
        each = theta[owner, :p]
        if q:
            each[:, self.columns] += theta[owner[:, None], p + episode[:, None] * q + np.arange(q)]
        return each, rows, begin

    def likelihood(self, theta, who, patients: Patients) -> np.ndarray:
        """(lanes,) minus log likelihood of all episodes, without the constant log(2 pi)/2 per reading."""
        each, rows, begin = self._expanded(np.asarray(theta), np.asarray(who), patients)
        return np.add.reduceat(self.kernel.likelihood(each, rows, patients.data), begin)

    def derivatives(self, theta, who, patients: Patients):
        """Minus log likelihood (lanes,), gradient (lanes, P) and expected Hessian (lanes, P, P) by theta (lanes, P)."""
        each, rows, begin = self._expanded(np.asarray(theta), np.asarray(who), patients)
        nll, g, h = self.kernel.derivatives(each, rows, patients.data)
        n, p, q = theta.shape[0], each.shape[1], len(self.columns)
        f, gradient, hessian = np.add.reduceat(nll, begin), np.zeros(theta.shape), np.zeros((*theta.shape, theta.shape[1]))
        gradient[:, :p], hessian[:, :p, :p] = np.add.reduceat(g, begin), np.add.reduceat(h, begin)
        for j in range((theta.shape[1] - p) // q if q else 0):
            part, here = h[begin + j][:, :, self.columns], slice(p + j * q, p + (j + 1) * q)
            gradient[:, here] = g[begin + j][:, self.columns]
            hessian[:, :p, here], hessian[:, here, :p] = part, part.swapaxes(1, 2)
            hessian[:, here, here] = part[:, self.columns]
        assert len(f) == n
        return f, gradient, hessian
