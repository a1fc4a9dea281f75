"""What is estimated of a population: the regression of the parameters on covariates, their covariance, and what all patients share.

theta_i ~ N(mu_c + B z_i, Omega) on the transformed scale, c the patient's component with probability weights[c] (one component: everybody
the same); an episode's deviations ~ N(0, occasion); population-level parameters are the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from twinlib.engine.contract import Model

FLOOR = 1e-6  # variances, and eigenvalues of the correlation matrix, below which Omega counts as singular


@dataclass(frozen=True)
class Structure:
    """Which entries are free. p fitted parameters, K covariate columns, q occasion parameters, m population-level parameters.

    means (p,), effects (K, p), omega (p, p), occasion (q, q), values (m,): booleans; names of the fitted and of the population-level parameters.
    """

    fitted: tuple[str, ...]
    shared: tuple[str, ...]
    means: np.ndarray
    effects: np.ndarray
    omega: np.ndarray
    occasion: np.ndarray
    values: np.ndarray

    def regression(self, components: int) -> np.ndarray:
        """(components + K, p): the free entries of the stacked coefficients."""
        return np.vstack([np.tile(self.means, (components, 1)), self.effects])

    def count(self, components: int) -> int:
        """Number of free parameters."""
        pairs = lambda m: int(np.tril(m).sum())  # noqa: E731
        return int(self.regression(components).sum()) + pairs(self.omega) + pairs(self.occasion) + int(self.values.sum()) + components - 1


@dataclass(frozen=True)
class Estimate:
    """coefficients (components + K, p): a mean per component, then the covariates' effects; omega (p, p); occasion (q, q); values (m,) of the
    population-level parameters on the transformed scale; weights (components,)."""

    coefficients: np.ndarray
    omega: np.ndarray
    occasion: np.ndarray
    values: np.ndarray
    weights: np.ndarray

    @property
    def components(self) -> int:
        return len(self.weights)

    def means(self, z: np.ndarray, component: int) -> np.ndarray:
        """(n, p) means of patients with covariate columns z (n, K)."""
        effects = np.einsum("nk,kp->np", z, self.coefficients[self.components :], optimize=False)
        return self.coefficients[component] + effects

    def vector(self, s: Structure) -> np.ndarray:
        """All free parameters as unconstrained numbers: coefficients, log-Cholesky factors, values, log weights."""
        return np.concatenate([
            self.coefficients[s.regression(self.components)], _factor(self.omega, s.omega), _factor(self.occasion, s.occasion),
            self.values[s.values], np.log(self.weights[1:] / self.weights[0]),
        ])

    def at(self, vector: np.ndarray, s: Structure) -> Estimate:
        """The estimate with these free parameters."""
        free = s.regression(self.components)
        sizes = np.cumsum([free.sum(), np.tril(s.omega).sum(), np.tril(s.occasion).sum(), s.values.sum()])
        b, omega, occasion, values, weights = np.split(vector, sizes.astype(int))
        coefficients, shared = self.coefficients.copy(), self.values.copy()
        coefficients[free], shared[s.values] = b, values
        share = np.exp(np.concatenate([[0.0], weights]))
        return Estimate(
            coefficients, _product(self.omega, omega, s.omega), _product(self.occasion, occasion, s.occasion), shared, share / share.sum()
        )

    def ordered(self) -> Estimate:
        """The same with the components by weight, the largest first."""
        order, c = np.argsort(-self.weights, kind="stable"), self.components
        return self.moved(coefficients=np.vstack([self.coefficients[:c][order], self.coefficients[c:]]), weights=self.weights[order])

    def moved(self, **fields) -> Estimate:
        return replace(self, **fields)

    def shared(self, model: Model) -> dict[str, float]:
        """Population-level parameters on the natural scale."""
        return {q.name: float(q.natural(v)) for q, v in zip(population_level(model), self.values)}


def population_level(model: Model) -> tuple:
    return tuple(q for q in model.parameters if q.level == "population")


def positive(omega: np.ndarray) -> tuple[np.ndarray, bool]:
    """omega with variances and eigenvalues of its correlations kept above FLOOR, and whether that changed it."""
    if not len(omega):
        return omega, False
    variance = np.diag(omega)
    sd = np.sqrt(np.maximum(variance, FLOOR))
    correlation = omega / np.outer(sd, sd)
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    if (variance > FLOOR).all() and values[0] > FLOOR:
        return omega, False
    correlation = (vectors * np.maximum(values, FLOOR)) @ vectors.T
    scale = sd / np.sqrt(np.diag(correlation))
    return correlation * np.outer(scale, scale), True


def _factor(omega: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Free entries of the Cholesky factor, the diagonal as logarithms."""
    if not len(omega):
        return np.zeros(0)
    root = np.linalg.cholesky(omega)
    np.fill_diagonal(root, np.log(np.diag(root)))
    return root[np.tril(free)]


def _product(omega: np.ndarray, numbers: np.ndarray, free: np.ndarray) -> np.ndarray:
    if not len(omega):
        return omega
    root = np.linalg.cholesky(omega)
    np.fill_diagonal(root, np.log(np.diag(root)))
    root[np.tril(free)] = numbers
    np.fill_diagonal(root, np.exp(np.diag(root)))
    return root @ root.T
