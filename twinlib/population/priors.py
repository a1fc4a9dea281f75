"""Prior versions: what a fit assumes of a patient before seeing its data, as rows of the `populations` tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from twinlib.engine.contract import Model
from twinlib.engine.normal import Normal
from twinlib.errors import ConfigError
from twinlib.population.design import Column, design
from twinlib.population.estimate import population_level

PUBLISHED, LEARNED, PROMOTED = "published-1", "learned", "promoted"


@dataclass(frozen=True)
class Prior:
    """A normal prior on the transformed scale: version, mean (p,), covariance (p, p); effects (K, p) of the covariate columns on the mean;
    values of the population-level parameters (natural scale) that are not the model's own."""

    version: str
    mean: np.ndarray
    covariance: np.ndarray
    columns: tuple[Column, ...] = ()
    effects: np.ndarray | None = None
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def sd(self) -> np.ndarray:
        return np.sqrt(np.diag(self.covariance))

    def normal(self, covariates: Sequence[Mapping[str, float]]) -> Normal:
        """The prior of patients with these covariates."""
        mean = np.tile(self.mean, (len(covariates), 1))
        if self.columns:
            mean = mean + np.einsum("nk,kp->np", design(self.columns, covariates), self.effects, optimize=False)
        return Normal(mean, self.covariance)

    def log_density(self, draws: np.ndarray, covariates: Mapping[str, float]) -> np.ndarray:
        """(k,) log density of draws (k, p) of a patient with these covariates."""
        normal = self.normal([covariates])
        return normal.log_constant - normal.minus_log(draws[None])[0]

    @property
    def digest(self) -> str:
        """Hash of everything that the prior says."""
        effects = [] if self.effects is None else self.effects.tolist()
        text = repr((self.mean.tolist(), self.covariance.tolist(), self.columns, effects, sorted(self.values.items())))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def published(model: Model) -> Prior:
    """The prior that the model itself declares, from the literature."""
    return Prior(PUBLISHED, model.prior_mean, np.diag(np.square(model.prior_sd)))


def rows(model: Model, prior: Prior) -> list[dict]:
    """The prior as rows of `populations`, without what only learning knows."""
    fitted, out = [q.name for q in model.fitted], []
    for q in model.parameters:
        row = {"model": model.name, "prior_version": prior.version, "parameter": q.name, "unit": q.unit, "transform": q.transform, "level": q.level, "source": q.source}
        if q.name in fitted:
            j = fitted.index(q.name)
            row |= {"median": float(q.natural(prior.mean[j])), "mean": float(prior.mean[j]), "sd": float(prior.sd[j]), "covariance": prior.covariance[j].tolist()}
        else:
            value = prior.values.get(q.name, q.median)
            row |= {"median": float(value), "mean": float(_transformed(q, value)), "sd": 0.0, "covariance": None}
        out.append(row)
    return out


def _transformed(q, value: float) -> float:
    return type(q)(q.name, q.unit, value, q.sd, q.source, q.transform, q.level).prior_mean


def check_version(version: str) -> None:
    """Raises ConfigError where no prior can have that name."""
    if version not in (PUBLISHED, PROMOTED) and not version.startswith(LEARNED):
        raise ConfigError(
            f"fit.prior_version: unknown version {version!r}; expected {PUBLISHED}, {PROMOTED} (what was promoted last), {LEARNED} (the newest) "
            "or one that learning has made"
        )


def find(model: Model, version: str, fits: Sequence[Mapping], parameters: Sequence[Mapping], effects: Sequence[Mapping]) -> Prior:
    """The prior of that version; `learned` is the newest usable one.

    fits, parameters, effects: rows of population_fits, populations and population_effects. Raises ConfigError where there is none, or where
    learning did not arrive at it.
    """
    if version == PUBLISHED:
        return published(model)
    mine = sorted((f for f in fits if f["model"] == model.name), key=lambda f: (f["learnt_at"], f["prior_version"]))
    usable = [f["prior_version"] for f in mine if f["status"] == "converged"]
    wanted = usable[-1] if version == LEARNED and usable else version
    state = next((f["status"] for f in mine if f["prior_version"] == wanted), None)
    if state != "converged":
        what = "unknown version" if state is None else f"learning is {state}:"
        raise ConfigError(f"fit.prior_version: {what} {version!r} of model {model.name}; known: {', '.join([PUBLISHED, *usable])}")
    here = {r["parameter"]: r for r in parameters if r["model"] == model.name and r["prior_version"] == wanted}
    if set(here) != {q.name for q in model.parameters}:
        raise ConfigError(f"fit.prior_version: {wanted} was learnt for other parameters than model {model.name} has now; learn again")
    fitted = [q.name for q in model.fitted]
    columns, coefficients = [], []
    for e in sorted((e for e in effects if e["model"] == model.name and e["prior_version"] == wanted), key=lambda e: (e["term"], e["parameter"])):
        column = Column(e["covariate"], e["kind"], e["reference"], e["level"], e["share"])
        if column not in columns:
            columns.append(column)
            coefficients.append(np.zeros(len(fitted)))
        coefficients[columns.index(column)][fitted.index(e["parameter"])] = e["coefficient"]
    return Prior(
        wanted, np.array([here[n]["mean"] for n in fitted]), np.array([here[n]["covariance"] for n in fitted]), tuple(columns),
        np.array(coefficients) if columns else None, {q.name: here[q.name]["median"] for q in population_level(model)},
    )
