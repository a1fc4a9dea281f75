"""Prior versions: what a fit assumes of a patient before seeing its data, as rows of the `populations` table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinlib.engine.contract import Model
from twinlib.errors import ConfigError

PUBLISHED = "published-1"


@dataclass(frozen=True)
class Prior:
    """Independent normal priors on the transformed scale: version, mean (p,), sd (p,)."""

    version: str
    mean: np.ndarray
    sd: np.ndarray


def published(model: Model) -> Prior:
    """The prior that the model itself declares, from the literature."""
    return Prior(PUBLISHED, model.prior_mean, model.prior_sd)


def rows(model: Model, prior: Prior) -> list[tuple]:
    """The prior as rows of `populations`."""
    return [
        (model.name, prior.version, q.name, q.unit, q.transform, float(np.exp(m)) if q.transform == "log" else float(m), float(s), q.source)
        for q, m, s in zip(model.parameters, prior.mean, prior.sd)
    ]


def find(model: Model, version: str) -> Prior:
    """The prior of that version. Raises ConfigError where there is none."""
    if version != PUBLISHED:
        raise ConfigError(f"fit.prior_version: unknown version {version!r} of model {model.name}; known: {PUBLISHED}")
    return published(model)
