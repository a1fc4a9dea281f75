"""Prior versions: what a fit assumes of a patient before seeing its data, as rows of the `populations` table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pyspark.sql import Row

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
        (model.name, prior.version, q.name, q.unit, q.transform, float(q.natural(m)), float(s), q.source)
        for q, m, s in zip(model.fitted, prior.mean, prior.sd)
    ]


def find(model: Model, version: str, stored: Sequence[Row] = ()) -> Prior:
    """The prior of that version: the model's own, or one of the `populations` rows `stored`. Raises ConfigError where there is none."""
    if version == PUBLISHED:
        return published(model)
    own = {r.parameter: r for r in stored if r.model == model.name and r.prior_version == version}
    if not own:
        known = sorted({PUBLISHED, *(r.prior_version for r in stored if r.model == model.name)})
        raise ConfigError(f"fit.prior_version: unknown version {version!r} of model {model.name}; known: {', '.join(known)}")
    lacking = [q.name for q in model.fitted if q.name not in own]
    if lacking:
        raise ConfigError(f"prior version {version} of model {model.name} lacks {', '.join(lacking)}: it was learned for other equations")
    mean = [replace(q, median=own[q.name].median).prior_mean for q in model.fitted]
    return Prior(version, np.array(mean), np.array([own[q.name].sd for q in model.fitted]))
