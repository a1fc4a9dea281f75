"""The normal prior of the transformed parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Normal:
    """Normal distributions, one per row: mean (rows, p), with one covariance (p, p) for all."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def independent(cls, mean: np.ndarray, sd: np.ndarray, rows: int) -> Normal:
        """The same mean (p,) and SD (p,) for every row."""
        return cls(np.tile(mean, (rows, 1)), np.diag(np.square(sd)))

    @cached_property
    def precision(self) -> np.ndarray:
        return np.linalg.inv(self.covariance)

    @cached_property
    def sd(self) -> np.ndarray:
        """(p,) marginal SDs."""
        return np.sqrt(np.diag(self.covariance))

    def take(self, rows) -> Normal:
        return Normal(self.mean[rows], self.covariance)

    def minus_log(self, theta: np.ndarray) -> np.ndarray:
        """Minus log density of theta (rows, ..., p), without the normalising constant."""
        off = theta - self.mean.reshape(self.mean.shape[0], *[1] * (theta.ndim - 2), -1)
        return 0.5 * (off * self.pull(off)).sum(-1)

    def pull(self, off: np.ndarray) -> np.ndarray:
        """precision @ off, along the last axis; not by BLAS, whose bits depend on the number of rows."""
        return np.einsum("ij,...j->...i", self.precision, off, optimize=False)

    @property
    def log_constant(self) -> float:
        """Log of the normalising constant of the density."""
        p = len(self.covariance)
        return -0.5 * (np.linalg.slogdet(self.covariance)[1] + p * np.log(2 * np.pi))
