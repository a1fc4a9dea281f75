"""Covariates as columns of a regression of the parameters: theta = mu + B z on the transformed scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Column:
    """One column of z from a covariate.

    kind: `linear` (value - reference), `log` (log of value / reference), `below` (1 where the value is below the reference),
    `category` (1 where the value equals `level`; the reference level has no column). A missing value gives 0, the effect of the reference;
    of `below` and `category` it gives `share`, the effect of the average patient.
    """

    covariate: str
    kind: str
    reference: float
    level: float | None = None
    share: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.covariate}={self.level:g}" if self.kind == "category" else f"{self.kind}({self.covariate})"

    def of(self, values: np.ndarray) -> np.ndarray:
        """The column for covariate values (n,), NaN = missing."""
        with np.errstate(all="ignore"):
            z = {
                "linear": lambda: values - self.reference,
                "log": lambda: np.log(values / self.reference),
                "below": lambda: (values < self.reference).astype(float),
                "category": lambda: (values == self.level).astype(float),
            }[self.kind]()
        stand_in = self.share if self.kind in ("below", "category") else 0.0
        return np.where(np.isfinite(values) & np.isfinite(z), z, stand_in)


def design(columns: Sequence[Column], covariates: Sequence[Mapping[str, float]]) -> np.ndarray:
    """(rows, columns) z of patients with these covariates."""
    z = np.zeros((len(covariates), len(columns)))
    for k, column in enumerate(columns):
        z[:, k] = column.of(np.array([c.get(column.covariate, np.nan) for c in covariates], float))
    return z
