"""Cohorts: named groups of patients, chosen by a filter over what is known of the patient and of the patient's twin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from twinlib.config import CohortConfig, SubgroupConfig
from twinlib.errors import ConfigError
from twinlib.whatif.language import NUMBER, TEXT, compiled
from twinlib.whatif.cgm import OUTCOMES

_PATIENT = {"sex": TEXT, "age_years": NUMBER}
_TWIN = {"status": TEXT, "n_observations": NUMBER, "fit_rmse": NUMBER, "fit_mard_percent": NUMBER, "forecast_rmse": NUMBER}
_TIMELINE = {"wear_fraction": NUMBER}
_EPISODE = ["patient_id", "model", "episode"]
ALL = "all"  # the subgroup of everybody


@dataclass(frozen=True)
class Attributes:
    """The columns that a cohort's filter may name: fixed ones, a model's parameters and covariates, the outcomes.

    Raises ConfigError where one name would mean two things.
    """

    parameters: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = tuple(o.name for o in OUTCOMES)

    def __post_init__(self):
        names = [*_PATIENT, *_TWIN, *_TIMELINE, *self.parameters, *self.covariates, *self.outcomes]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ConfigError(f"cohort attributes: {', '.join(twice)} stands for more than one column")

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of every column by name: NUMBER or TEXT."""
        named = (*self.covariates, *self.parameters, *self.outcomes)
        return _PATIENT | _TWIN | _TIMELINE | dict.fromkeys(named, NUMBER)


def check(cohort: CohortConfig, known: Attributes) -> str:
    """The cohort's filter as checked Spark SQL text. Raises ConfigError before any work is done."""
    return compiled(cohort.where, known.kinds, f"cohort {cohort.name}")


def check_all(cohorts: Sequence[CohortConfig], known: Attributes) -> None:
    """Check every cohort, and that no name stands twice. Raises ConfigError."""
    names = [c.name for c in cohorts]
    for cohort in cohorts:
        if names.count(cohort.name) > 1:
            raise ConfigError(f"cohort {cohort.name}: stands more than once")
        check(cohort, known)


def attributes(
    patients: DataFrame,
    twins: DataFrame,
    twin_parameters: DataFrame,
    timelines: DataFrame,
    outcomes: DataFrame,
    known: Attributes,
) -> DataFrame:
    """One row per patient: patient_id and the columns of `known` (numbers as double), null where there is nothing.

    They describe the patient's latest converged episode; where none converged, the latest one, whose `status` then says
    why there is no twin; null for a patient without any. Age is in completed years at that episode's start, parameters
    are posterior medians, outcomes are those of the observed readings. The frames follow the table contracts and hold
    one model.
    """
    newest = Window.partitionBy("patient_id").orderBy(
        (F.col("status") == "converged").desc(), F.col("episode").desc(), F.col("model")
    )
    episode = twins.select(*_EPISODE, *_TWIN).withColumn("rank", F.row_number().over(newest)).where("rank = 1").drop("rank")
    parameters = _wide(twin_parameters, "parameter", "q50", known.parameters)
    factual = _wide(outcomes, "outcome", "factual", known.outcomes)
    local_start = F.to_date(F.timestamp_seconds(F.unix_timestamp("start") + 60 * F.col("utc_offset_minutes")))
    covariates = [_covariate(c).alias(c) for c in known.covariates]
    packed = timelines.select(*_EPISODE, local_start.alias("local_start"), "wear_fraction", *covariates)
    joined = (
        patients.select("patient_id", "sex", "birth_date")
        .join(episode, "patient_id", "left")
        .join(packed, _EPISODE, "left")
        .join(parameters, _EPISODE, "left")
        .join(factual, _EPISODE, "left")
        .withColumn("age_years", F.floor(F.months_between("local_start", "birth_date") / 12))
    )
    return joined.select(
        "patient_id", *[F.col(n).cast("double" if k == NUMBER else "string").alias(n) for n, k in known.kinds.items()]
    )


def _wide(long: DataFrame, name: str, value: str, wanted: Sequence[str]) -> DataFrame:
    """One row per episode, one column per wanted name; where a name has several rows they hold the same value or null."""
    columns = [F.max(F.when(F.col(name) == w, F.col(value))).alias(w) for w in wanted]
    return long.groupBy(*_EPISODE).agg(*columns) if columns else long.select(*_EPISODE).distinct()


def _covariate(name: str) -> Column:
    return F.get(F.transform(F.filter("covariates", lambda c: c["name"] == name), lambda c: c["value"]), 0)


def members(cohorts: Iterable[CohortConfig], frame: DataFrame, known: Attributes) -> DataFrame:
    """The patients of each cohort as rows (cohort, patient_id), from a frame of `attributes`, in one pass.

    A filter that is null for a patient (a column of it is unknown) does not select the patient. Raises ConfigError.
    """
    chosen = [F.when(F.expr(check(c, known)), F.lit(c.name)) for c in cohorts]
    return frame.select(F.explode(F.array_compact(F.array(*chosen))).alias("cohort"), "patient_id")


def check_subgroups(subgroups: Iterable[SubgroupConfig], known: Attributes) -> None:
    """Raises ConfigError where a subgroup's attribute is unknown, is a number without breaks, or a text with breaks."""
    for s in subgroups:
        kind = known.kinds.get(s.by)
        if kind is None:
            raise ConfigError(f"subgroups: by: unknown column {s.by}; known are {', '.join(sorted(known.kinds))}")
        if (kind == NUMBER) != bool(s.breaks) or list(s.breaks) != sorted(set(s.breaks)):
            raise ConfigError(f"subgroups: {s.by}: a number needs increasing breaks, a text has none")


def subgroups(wanted: Sequence[SubgroupConfig], frame: DataFrame) -> DataFrame:
    """The subgroups of each patient as rows (subgroup, patient_id), from a frame of `attributes`: `all`, and one for every entry of `wanted`,
    such as `sex=female` or `age_years=18 to 65` (from the first to below the second); `unknown` where the attribute is null."""

    def label(s: SubgroupConfig) -> Column:
        column = F.col(s.by)
        if not s.breaks:
            return F.coalesce(column, F.lit("unknown"))
        named = F.when(column.isNull(), F.lit("unknown")).when(column < s.breaks[0], F.lit(f"below {s.breaks[0]:g}"))
        for low, high in zip(s.breaks, s.breaks[1:]):
            named = named.when(column < high, F.lit(f"{low:g} to {high:g}"))
        return named.otherwise(F.lit(f"{s.breaks[-1]:g} and more"))

    labels = [F.concat(F.lit(f"{s.by}="), label(s)) for s in wanted]
    return frame.select(F.explode(F.array(F.lit(ALL), *labels)).alias("subgroup"), "patient_id")
