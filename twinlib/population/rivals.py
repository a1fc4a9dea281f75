"""Which of several models, or priors, suits each patient: evidence on the same readings (Kass & Raftery 1995, 10.1080/01621459.1995.10476572).

A rival is another model of the same records, whose population is learnt beside the model's own, or the model's published prior. Priors that are
learnt have seen the patient as one among all, so evidence under them is comparable where patients are many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from twinlib import models
from twinlib.config import LearnConfig
from twinlib.engine.contract import Model
from twinlib.engine.kernel import Kernel
from twinlib.errors import ConfigError
from twinlib.population import settings
from twinlib.population.learn import Learnt
from twinlib.population.learning import Learning
from twinlib.population.priors import PUBLISHED
from twinlib.tables.schemas import MODEL_COMPARISONS

Candidate = tuple[str, str]  # model, prior version


def find(config: LearnConfig, model: Model) -> tuple[Model, ...]:
    """The rival models of the configuration, in its order. Raises ConfigError where one cannot be compared with `model`."""
    found = tuple(models.find(name) for name in config.rivals if name != PUBLISHED)
    names = [model.name, *[r.name for r in found]]
    for r in found:
        if names.count(r.name) > 1:
            raise ConfigError(f"learn.rivals: {r.name}: is named twice, or the model itself")
        check(r, model, config)
    return found


def check(rival: Model, model: Model, config: LearnConfig) -> None:
    """Raises ConfigError where the timelines of `model` do not hold what the rival needs, or the rival does not explain all that they hold."""
    where = f"learn.rivals: {rival.name}"
    if [(s.name, s.unit) for s in rival.signals] != [(s.name, s.unit) for s in model.signals]:
        raise ConfigError(f"{where}: has other signals than {model.name}; evidence compares models of the same readings")
    unknown = sorted((set(rival.agents) - set(model.agents)) | (set(rival.covariates) - set(model.covariates) - set(settings.covariates(config))))
    if unknown:
        raise ConfigError(f"{where}: needs {', '.join(unknown)}, which the timelines of {model.name} do not hold")


def settings_for(config: LearnConfig, rival: Model) -> LearnConfig:
    """The part of the settings that the rival has a use for; one component, for evidence is compared by model."""
    names, fitted = {q.name for q in rival.parameters}, {q.name for q in rival.fitted}
    omega = config.omega if isinstance(config.omega, str) else tuple(b for b in config.omega if set(b) <= fitted)
    return config.model_copy(update={
        "omega": omega, "effects": tuple(e for e in config.effects if e.parameter in fitted), "fixed": tuple(n for n in config.fixed if n in names),
        "only": tuple(n for n in config.only if n in names), "source": "timelines",
        "start": {n: v for n, v in config.start.items() if n in names}, "phenotypes": 1, "rivals": (),
    })


def published(kernel: Kernel, config: LearnConfig, seed: int, known: int) -> Learning:
    """The model's own prior in the form of something learnt, to work out evidence under it."""
    plain = LearnConfig(draws=config.draws, sample=config.sample)
    estimate, structure = settings.start(plain, kernel.model, (), False)
    best = Learnt("converged", None, estimate, structure, np.nan, np.nan, np.zeros(0), {})
    return Learning(kernel, plain, seed, (), {}, known, best, [], {})


def comparisons(members: DataFrame, own: Candidate, candidates: Sequence[Candidate]) -> DataFrame:
    """Rows of `model_comparisons` from those of `population_members`: all candidates, `own` among them, with equal odds
    before the readings. Nothing is said of patients of whom one candidate has no posterior."""
    rows = members.where(F.concat_ws("|", "model", "prior_version").isin(*["|".join(c) for c in candidates]))
    patient = Window.partitionBy("patient_id")
    known, best = F.count("log_evidence").over(patient) == len(candidates), F.max("log_evidence").over(patient)
    of = F.max(F.when((F.col("model") == own[0]) & (F.col("prior_version") == own[1]), F.col("log_evidence"))).over(patient)
    share = F.exp(F.col("log_evidence") - best)
    rows = rows.select(
        "patient_id", F.lit(own[0]).alias("model"), F.lit(own[1]).alias("prior_version"), F.col("model").alias("candidate"),
        F.col("prior_version").alias("candidate_version"), F.when(known, "compared").otherwise("incomplete").alias("status"), "reason", "readings",
        "log_evidence", "log_evidence_se", F.when(known, F.col("log_evidence") - of).alias("log_bayes_factor"),
        F.when(known, share / F.sum(share).over(patient)).alias("probability"),
    )
    return MODEL_COMPARISONS.conform(rows)
