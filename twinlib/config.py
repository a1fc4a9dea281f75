"""The typed configuration of a run, read from YAML. Unknown keys, wrong types and bad values are errors with their place.

Relative paths are relative to the folder in which the job is started. `${NAME}` and `${NAME:default}` in a text are
replaced from the environment before the text is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator,
)

from twinlib.errors import ConfigError
from twinlib.units import span


class Strict(BaseModel):
    """Base of every configuration model: unknown keys are refused, values do not change once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except Exception:  # ZoneInfo raises several kinds of error on a name that is no zone
        raise ValueError(f"unknown time zone {name!r}; expected an IANA name such as Europe/London, or UTC") from None
    return name


class StorageConfig(Strict):
    format: Literal["parquet", "delta"] = "parquet"
    buckets: Annotated[int, Field(ge=1, le=4096)] = 8
    keep_versions: Annotated[int, Field(ge=1)] = 2


class PseudonymConfig(Strict):
    """Where the key of the patient pseudonyms comes from: a file with at least 16 bytes, or an environment variable."""

    file: str | None = None
    env: str | None = None
    create: bool = False  # make a random key file where there is none

    @model_validator(mode="after")
    def _one_place(self):
        if (self.file is None) == (self.env is None):
            raise ValueError("give exactly one of `file` and `env`")
        if self.create and self.file is None:
            raise ValueError("`create` needs `file`")
        return self


class GenerateConfig(Strict):
    """Synthetic cohort to make before the run, unless it is there.

    life: people of the two-compartment truth with what real life adds and no file tells: sensitivity that varies between days and within them,
    exercise, meals that are not logged or counted wrongly, a sensor error with memory (`twinlib/synthetic/life.py`).
    """

    root: str
    patients: Annotated[int, Field(ge=1)] = 300
    days: Annotated[int, Field(ge=1, le=366)] = 14
    start: str = "2026-01-05"
    dirty: bool = True
    faults: bool = False  # also whole-file and stretch faults, one kind per person (twinlib/synthetic/faults.py); JSON uploads as lines
    life: bool = False


class SourceConfig(Strict):
    """One folder of raw files: as a mapping file says, an OMOP CDM (5.3, 5.4), or a FHIR R4 bulk export (NDJSON)."""

    kind: Literal["mapped", "omop", "fhir"] = "mapped"
    mapping: str | None = None
    root: str
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = None  # in place of the mapping's own name, or the kind
    namespace: str = ""  # of omop and fhir: keeps their patients apart from others whose ids happen to be the same
    zone: Annotated[str, AfterValidator(_zone)] = "UTC"  # of omop and fhir: clock of the times that do not name their own
    identifier_system: str | None = None  # of omop: what person_source_value is an identifier of (see `identity`)

    @model_validator(mode="after")
    def _complete(self):
        if (self.kind == "mapped") != (self.mapping is not None):
            raise ValueError("`mapping` goes with kind mapped, which needs it")
        extra = {"namespace", "zone"} & self.model_fields_set if self.kind == "mapped" else set()
        extra |= {"identifier_system"} & self.model_fields_set if self.kind != "omop" else set()
        if extra:
            raise ValueError(f"{', '.join(sorted(extra))}: not for a source of kind {self.kind}")
        return self


class IdentityConfig(Strict):
    """How one person is found under different ids. Without it, the same id in the same namespace is the same person, and no other.

    systems: identifier systems that name one person; two people of one source with the same identifier are a conflict.
    crosswalk: CSV file with the columns source, id, person; ids of one person are the same patient.
    """

    systems: tuple[str, ...] = ()
    crosswalk: str | None = None


class EpisodeConfig(Strict):
    """How a patient's record is cut into episodes, and which of them may be fitted. What is left open follows from the model: a sensor's
    signal needs 144 readings and 24 hours of wear, and a bolus and a meal where they are inputs; sparse readings need to be one."""

    days: Annotated[int, Field(ge=1, le=90)] | Literal["all"] = 14
    minimum_readings: Annotated[int, Field(ge=1)] | None = None
    minimum_wear_hours: Annotated[float, Field(ge=0)] | None = None
    require: tuple[str, ...] | None = None
    body_weight_kg: Annotated[float, Field(gt=0)] = 70.0  # stands in where none is known; marked as assumed
    stand_ins: dict[str, float] = {}  # the same for other covariates of the model
    leave_out: tuple[str, ...] = ("flat_line", "jump", "compression_low", "overlap", "clock_off", "drift")  # flags of readings that a fit must not see


class FitConfig(Strict):
    model: str = "glucose_insulin"
    prior_version: str = "published-1"
    maximum_iterations: Annotated[int, Field(ge=1, le=1000)] = 60
    starts: Annotated[int, Field(ge=1, le=64)] = 1  # of every fit, for models with several modes; those that fail get more anyway
    importance_draws: Annotated[int, Field(ge=40, le=65536)] = 512  # in four equal stages
    draws: Annotated[int, Field(ge=8, le=4096)] = 32  # equally weighted draws kept for what-ifs
    moves: Annotated[int, Field(ge=0, le=10000)] = 0  # steps that set the kept draws apart, for models with many parameters
    power: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the likelihood in posterior draws: below 1 for models that are not quite right
    batch_rows: Annotated[int, Field(ge=1)] = 64


class EffectConfig(Strict):
    """A covariate's effect on a parameter, on the parameter's transformed scale."""

    parameter: str
    covariate: str  # a signal as it was known at the episode's start, or age_years or female
    kind: Literal["linear", "log", "below", "category"] = "linear"
    reference: float | None = None  # where the effect is nothing (linear, log: the median unless given; category: the most frequent level), or the bound (below)
    fixed: float | None = None  # the coefficient, where it is not to be estimated (0.75: allometric clearance)

    @model_validator(mode="after")
    def _bound(self):
        if self.kind == "below" and self.reference is None:
            raise ValueError("kind `below` needs `reference`")
        if self.kind == "category" and self.fixed is not None:
            raise ValueError("a category has one coefficient per level: none can be fixed")
        return self


class LearnConfig(Strict):
    """How the population is estimated (docs/population.md)."""

    source: Literal["timelines", "twins"] = "timelines"  # new draws of every patient in every iteration, or those that the twins have already
    only: tuple[str, ...] = ()  # parameters that are learnt, all others are fixed; none: all but `fixed`
    prior_patients: Annotated[float, Field(ge=0)] = 0.0  # that the model's prior counts as, for the spread between patients
    omega: Literal["full", "diagonal"] | tuple[tuple[str, ...], ...] = "diagonal"  # or blocks of parameters that vary together
    effects: tuple[EffectConfig, ...] = ()
    fixed: tuple[str, ...] = ()  # parameters that keep the model's prior (or `start`)
    start: dict[str, float] = {}  # first guesses, on the natural scale
    sample: Annotated[int, Field(ge=2)] = 10_000  # patients; beyond it a stratified sample is learnt from
    phenotypes: Annotated[int, Field(ge=1, le=9)] = 1  # most components of the mixture; BIC chooses
    draws: Annotated[int, Field(ge=40, le=65536)] = 256
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 200
    tolerance: Annotated[float, Field(gt=0)] = 1e-3  # of every free parameter, on the transformed scale
    rivals: tuple[str, ...] = ()  # other models of the same records, or published-1, compared patient by patient


class ChangeConfig(Strict):
    """When a patient counts as changed since last night (docs/population.md)."""

    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01  # share of unchanged patients that are flagged, each night with new readings


class OutcomeConfig(Strict):
    """A measure of the simulated trajectory as an outcome (docs/scenarios.md); limits in the signal's unit."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    measure: Literal[
        "mean", "maximum", "minimum", "final", "change", "auc", "slope", "time_above", "time_below", "time_within", "ever_above", "ever_below",
        "time_to_above", "time_to_below", "amount_per_day",
    ]
    better: Literal["higher", "lower", "neither"]
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    agent: str | None = None
    target: float | None = None  # a patient beyond it in the better direction is on target


class SimulateConfig(Strict):
    """Which scenarios, in which world: `counterfactual` of what happened, a `new_day` of the same patient (other disturbances), or a
    `forecast` from the end of the record over `horizon`, during which the last days' inputs are repeated."""

    scenarios: str  # YAML file
    mode: Literal["counterfactual", "new_day", "forecast"] = "counterfactual"
    horizon: Annotated[float, BeforeValidator(span), Field(gt=0)] = 1440.0  # minutes, or a text such as "2 weeks"
    grid: Annotated[float, BeforeValidator(span), Field(gt=0)] | None = None  # outcomes from the twin's trajectory so often; none: from readings
    outcomes: tuple[str | OutcomeConfig, ...] = ()  # none: those of the model's signal
    minimum_wear_fraction: Annotated[float, Field(ge=0, le=1)] = 0.7  # CGM consensus


class SafetyConfig(Strict):
    """P(outcome beyond the limit) must be below `probability`; exactly one of above and below."""

    outcome: str
    above: float | None = None
    below: float | None = None
    probability: Annotated[float, Field(gt=0, le=1)] = 0.05

    @model_validator(mode="after")
    def _one_limit(self):
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of above and below")
        return self


class RecommendConfig(Strict):
    """The best of some scenarios for each patient (docs/scenarios.md)."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    scenarios: Annotated[tuple[str, ...], Field(min_length=1)]  # names, or patterns such as basal_*
    objective: str  # outcome to improve
    safety: tuple[SafetyConfig, ...] = ()
    credible: Annotated[float, Field(ge=0.5, lt=1)] = 0.9  # probability of beating current care that a change needs
    minimum_gain: Annotated[float, Field(ge=0)] = 0.0


class SubgroupConfig(Strict):
    """Effects by the values of an attribute: each text, or the ranges between `breaks`."""

    by: str
    breaks: tuple[float, ...] = ()


class DisclosureConfig(Strict):
    """Counts of 1 to smallest_cell - 1 patients are not published, nor what would give them away; 1 switches it off."""

    smallest_cell: Annotated[int, Field(ge=1)] = 11


class CohortConfig(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    where: str = "true"
    meaning: str = ""


class AlertConfig(Strict):
    """What a night may not exceed without an alert (exit code 4). Shares are of the records read and of the episodes fitted."""

    quarantined_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    failed_fit_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    prior_drift: Annotated[float, Field(gt=0)] = 1.0  # mean of the twins against the prior's, in prior standard deviations


class RunConfig(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    output: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    storage: StorageConfig = StorageConfig()
    spark: dict[str, str | int | float | bool] = {}
    pseudonym_key: PseudonymConfig
    generate: GenerateConfig | None = None
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]  # order = priority where two sources conflict
    identity: IdentityConfig | None = None
    vocabulary: str | None = None  # YAML file with more signals, agents and units (see docs/sources.md)
    episodes: EpisodeConfig = EpisodeConfig()
    fit: FitConfig = FitConfig()
    learn: LearnConfig = LearnConfig()
    change: ChangeConfig = ChangeConfig()
    simulate: SimulateConfig | None = None
    cohorts: tuple[CohortConfig, ...] = (CohortConfig(name="everyone"),)
    subgroups: tuple[SubgroupConfig, ...] = ()
    recommend: tuple[RecommendConfig, ...] = ()
    disclosure: DisclosureConfig = DisclosureConfig()
    alerts: AlertConfig = AlertConfig()
    checkpoint_episodes: Annotated[int, Field(ge=1)] = 20000  # fitted and simulated between two writes: what a crash can cost
    as_of: AwareDatetime | None = None  # only records known by then are read (the command line's --as-of)

    @property
    def tables(self) -> str:
        return f"{self.output.rstrip('/')}/tables"  # a local folder, or a URI (Delta on a cluster)

    def hash(self, *parts: str) -> str:
        """Hash of the named parts of the configuration (all of it when none is named)."""
        data = self.model_dump(mode="json")
        picked = {p: data[p] for p in parts} if parts else data
        return hashlib.sha256(json.dumps(picked, sort_keys=True).encode()).hexdigest()[:16]


_VARIABLE = re.compile(r"\$\{(\w+)(?::([^}]*))?\}")


def _expand(value, path: str):
    if isinstance(value, dict):
        return {k: _expand(v, path) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, path) for v in value]
    if not isinstance(value, str):
        return value

    def one(match):
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise ConfigError(f"{path}: environment variable {match[1]} is not set and has no default")
        return found

    return _VARIABLE.sub(one, value)


def read_yaml(path: str | Path) -> object:
    """The content of a YAML file, loaded safely. Raises ConfigError that names file and line."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}:{where} is not valid YAML: {getattr(e, 'problem', e)}") from None


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], data: object, path: str | Path) -> M:
    """`data` checked against `model`. Raises ConfigError with every problem and its place."""
    try:
        return model.model_validate(_expand(data, str(path)))
    except ValidationError as e:
        lines = [f"{'.'.join(str(p) for p in x['loc']) or 'the file'}: {x['msg']}" for x in e.errors()]
        raise ConfigError(f"{path}: " + "; ".join(lines)) from None


_SECRET = re.compile(r"secret|password|passphrase|token|credential|access[._-]?key", re.IGNORECASE)


def _check_secrets(data: object, path: str | Path) -> None:
    """Raises ConfigError where a Spark setting that is named like a secret is written out instead of taken from the environment."""
    settings = data.get("spark") if isinstance(data, dict) else None
    for key, value in (settings if isinstance(settings, dict) else {}).items():
        if _SECRET.search(str(key)) and isinstance(value, str) and not re.fullmatch(r"\$\{\w+\}|[\w.$]*Provider", value):
            raise ConfigError(f"{path}: spark.{key}: secrets come from the environment: write ${{NAME}} and set the variable NAME")


def load(path: str | Path, as_of: datetime | None = None) -> RunConfig:
    """The run configuration in a YAML file, with another `as_of` where one is given. Raises ConfigError."""
    data = read_yaml(path)
    _check_secrets(data, path)
    config = validate(RunConfig, data, path)
    return config if as_of is None else config.model_copy(update={"as_of": as_of})
