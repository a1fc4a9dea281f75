"""The stages of a night, each from tables to tables: generate, ingest, fuse, fit, simulate, effects.

A stage does nothing where its inputs have not changed; fit and simulate do only the patients whose content has changed. A stage
that writes several tables writes the one that decides "nothing to do" last, so a run that dies in between is done again.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib import models, sources, synthetic
from twinlib.config import RunConfig, load
from twinlib.engine.kernel import Kernel
from twinlib.errors import ConfigError
from twinlib.fusion import packing
from twinlib.fusion.ingest import ingest
from twinlib.population import fit as fitting
from twinlib.population import priors
from twinlib.progress import progress
from twinlib.session import session
from twinlib.tables import open_storage, schemas
from twinlib.tables.contracts import Table
from twinlib.tables.runs import Runs, Stage
from twinlib.whatif import cohorts, effects
from twinlib.whatif import simulate as simulation
from twinlib.whatif.scenarios import load_scenarios

log = logging.getLogger("twinlib")
STEP = 5  # minutes, grid of CGM timelines
EPISODE = ["patient_id", "model", "episode"]
STAND_INS = {"body_weight": "body_weight_kg"}  # covariate -> setting of `episodes` that stands in where no value is known


@dataclass(frozen=True)
class Plan:
    """A checked configuration: everything that can be known to be wrong before Spark starts has been looked at."""

    config: RunConfig
    fitter: fitting.Fitter
    simulator: simulation.Simulator | None
    attributes: cohorts.Attributes

    @classmethod
    def of(cls, path: str | Path, landing: bool = False) -> Plan:
        """Read and check configuration, model, prior, scenarios, cohorts, key and (unless they are yet to be made, or to land) raw files.

        Raises ConfigError or DataError.
        """
        config = load(path)
        model = models.find(config.fit.model)
        packing.check(config.episodes, model.name, model.agents, STEP)
        lacking = set(model.covariates) - set(STAND_INS)
        if lacking:
            raise ConfigError(f"model {model.name}: no stand-in for covariates {', '.join(sorted(lacking))}; known: {', '.join(STAND_INS)}")
        fitter = fitting.Fitter(Kernel(model), priors.find(model, config.fit.prior_version), config.fit, config.seed)
        simulator = None
        if config.simulate:
            scenarios = load_scenarios(config.simulate.scenarios, model.agents)
            simulator = simulation.Simulator(fitter.kernel, scenarios, config.simulate.minimum_wear_fraction)
        known = cohorts.Attributes(tuple(q.name for q in model.fitted), model.covariates)
        cohorts.check_all(config.cohorts, known)
        sources.load_key(config.pseudonym_key)
        plan = cls(config, fitter, simulator, known)
        if config.generate is None and not landing:
            plan.check_sources()
        return plan

    def check_sources(self) -> None:
        """Check the raw files against their mappings. Raises ConfigError or DataError."""
        sources.check(self.config)


@dataclass(frozen=True)
class Work:
    """A running stage: its row of the manifest, and whether its inputs are the same as last time."""

    stage: Stage
    same: bool

    @property
    def counts(self) -> dict[str, int]:
        return self.stage.counts

    def unchanged(self) -> None:
        self.stage.unchanged()


class Night:
    """One run: a plan on a Spark session and a storage, stage by stage."""

    def __init__(self, plan: Plan, spark: SparkSession | None = None):
        self.plan, self.config = plan, plan.config
        self.spark = spark or session(f"twinlib {plan.config.name}", dict(plan.config.spark), plan.config.storage.format == "delta")
        self.storage = open_storage(self.spark, plan.config)
        self.runs = Runs(self.storage, plan.config)

    @cached_property
    def partitions(self) -> int:
        """Tasks of the compute stages: enough for balance and progress, few enough to amortise their start."""
        return 8 * self.spark.sparkContext.defaultParallelism

    def run(self) -> None:
        """All stages, under the writer lock."""
        with self.storage.writer():
            for stage in (self.generate, self.ingest, self.fuse, self.fit, self.simulate, self.effects):
                stage()

    @contextmanager
    def _stage(self, name: str, parts: tuple[str, ...], *inputs: str, writes: tuple[Table, ...] = ()) -> Iterator[Work]:
        """A stage in the manifest, with progress on a terminal and one log line.

        parts: the parts of the configuration that the stage reads; inputs: versions or hashes of what else it reads. `same` where both
        are those of its last run and its tables are there.
        """
        digest = hashlib.sha256("\x1f".join(inputs).encode()).hexdigest()[:16]
        began, work = time.monotonic(), None
        try:
            with self.runs.stage(name, digest, parts) as stage, progress(self.spark, name):
                same = self.runs.last_input_hash(name, parts) == digest and all(self.storage.exists(t) for t in writes)
                work = Work(stage, same)
                yield work
        finally:
            counts = " ".join(f"{k}={v}" for k, v in sorted(work.counts.items()) if "." not in k) if work else ""
            state = "failed" if sys.exc_info()[0] else work.stage.status
            log.info("stage=%s status=%s seconds=%.1f %s", name, state, time.monotonic() - began, counts)

    def generate(self) -> None:
        """Make the synthetic cohort where the configuration asks for one."""
        if self.config.generate is None:
            return
        with self._stage("generate", ("generate", "seed")) as stage:
            if not synthetic.generate(self.config.generate, self.config.seed):
                stage.unchanged()
            stage.counts["patients"] = self.config.generate.patients

    def ingest(self) -> None:
        """Raw files to patients, observations, exposures, quarantine and counts."""
        if self.config.generate is not None:  # else the plan has looked at them
            self.plan.check_sources()
        key = sources.load_key(self.config.pseudonym_key)
        s = self.storage
        tables = (
            schemas.PATIENTS, schemas.OBSERVATIONS, schemas.EXPOSURES, schemas.EVENTS, schemas.IDENTITIES, schemas.QUARANTINE, schemas.INGEST_COUNTS
        )
        with self._stage("ingest", ("sources", "identity", "vocabulary"), sources.fingerprint(self.config, key), writes=tables) as stage:
            if stage.same:
                return stage.unchanged()
            got = ingest(self.spark, self.config, key)
            for table, df, check in got.frames():
                s.replace(table, df, check)
            s.replace(schemas.INGEST_COUNTS, got.counts)
            got.release()
            for row in s.read(schemas.INGEST_COUNTS).collect():
                for name in ("rows_read", "accepted", "duplicates", "quarantined", "rows_ignored"):
                    stage.counts[f"{row.source}.{name}"] = row[name]
                    stage.counts[name] = stage.counts.get(name, 0) + row[name]
            stage.counts["patients"] = s.read(schemas.PATIENTS).count()
            if self.config.identity:
                stage.counts.update({f"identities_{k}": n for k, n in _by(s.read(schemas.IDENTITIES), "status").items()})

    def fuse(self) -> None:
        """Observations and exposures to packed timelines."""
        s, model = self.storage, self.plan.fitter.model
        tables = (schemas.PATIENTS, schemas.OBSERVATIONS, schemas.EXPOSURES)
        versions = [s.version(t) for t in tables]
        with self._stage("fuse", ("episodes",), model.name, *versions, writes=(schemas.TIMELINES,)) as stage:
            if stage.same:
                return stage.unchanged()
            patients, observations, exposures = (s.read(t) for t in tables)
            s.replace(schemas.TIMELINES, packing.pack(
                observations, exposures, patients, self.config.episodes, model.name, model.signals[0].name, model.agents,
                {c: getattr(self.config.episodes, STAND_INS[c]) for c in model.covariates}, STEP,
            ))
            stage.counts.update(_by(s.read(schemas.TIMELINES), "status"))

    def fit(self) -> None:
        """A twin for every timeline whose content, model or prior has changed."""
        s, fitter = self.storage, self.plan.fitter
        tables = (schemas.POPULATIONS, schemas.TWIN_PARAMETERS, schemas.TWINS)
        versions = (s.version(schemas.TIMELINES), fitter.model_version, fitter.prior.version)
        with self._stage("fit", ("fit", "seed"), *versions, writes=tables) as stage:
            if stage.same:
                return stage.unchanged()
            s.replace(schemas.POPULATIONS, self.spark.createDataFrame(priors.rows(fitter.model, fitter.prior), schemas.POPULATIONS.schema))
            timelines, twins, parameters = (s.read(t) for t in (schemas.TIMELINES, schemas.TWINS, schemas.TWIN_PARAMETERS))
            identity = [*EPISODE, "timeline_hash", "model_version", "prior_version"]
            wanted = timelines.withColumns({
                "timeline_hash": F.col("content_hash"), "model_version": F.lit(fitter.model_version), "prior_version": F.lit(fitter.prior.version)
            })
            todo, changed, kept = _changes(wanted, twins, identity)
            stage.counts["episodes_fitted"], stage.counts["patients_changed"] = todo.count(), changed.count()
            if stage.counts["patients_changed"]:
                meter = fitting.Meter.on(self.spark)
                fitted = fitting.fit(todo.drop(*identity[3:]), fitter, self.partitions, meter).persist()
                s.replace_patients(
                    schemas.TWIN_PARAMETERS,
                    fitting.twin_parameters(fitted).unionByName(parameters.join(kept.select(EPISODE), EPISODE, "left_semi")), changed,
                )
                s.replace_patients(schemas.TWINS, fitting.twins(fitted).unionByName(kept), changed)
                fitted.unpersist()
                stage.counts["engine_milliseconds"] = round(1000 * meter.engine.value)
                stage.counts["compile_milliseconds"] = round(1000 * meter.compilation.value)
            else:
                stage.unchanged()
            todo.unpersist(), changed.unpersist()
            stage.counts.update(_by(s.read(schemas.TWINS), "status"))

    def simulate(self) -> None:
        """All scenarios for every twin whose twin or scenarios have changed."""
        s, simulator = self.storage, self.plan.simulator
        if simulator is None:
            return
        versions = (s.version(schemas.TIMELINES), s.version(schemas.TWINS), simulator.hash)
        with self._stage("simulate", ("simulate",), *versions, writes=(schemas.OUTCOMES,)) as stage:
            if stage.same:
                return stage.unchanged()
            timelines, twins, outcomes = (s.read(t) for t in (schemas.TIMELINES, schemas.TWINS, schemas.OUTCOMES))
            work = F.sha2(F.concat_ws("|", "timeline_hash", "model_version", "prior_version", F.lit(simulator.hash)), 256).substr(1, 16)
            twin = twins.select(
                *EPISODE, F.col("status").alias("twin_status"), F.col("reason").alias("twin_reason"), "draws", work.alias("work_hash")
            )
            rows = timelines.join(twin, EPISODE)
            identity = [*EPISODE, "work_hash"]
            todo, changed, kept = _changes(rows, outcomes, identity)
            stage.counts["episodes_simulated"] = todo.count()
            if changed.count():
                fresh = simulation.simulate(todo, simulator, self.partitions)
                s.replace_patients(schemas.OUTCOMES, fresh.unionByName(kept), changed)
            else:
                stage.unchanged()
            todo.unpersist(), changed.unpersist()
            stage.counts.update(_by(s.read(schemas.OUTCOMES), "status"))

    def effects(self) -> None:
        """Mean effects of every cohort."""
        s, simulator = self.storage, self.plan.simulator
        if simulator is None:
            return
        versions = [s.version(t) for t in (schemas.OUTCOMES, schemas.TWINS, schemas.PATIENTS)]
        with self._stage("effects", ("cohorts", "seed"), *versions, writes=(schemas.COHORT_EFFECTS,)) as stage:
            if stage.same:
                return stage.unchanged()
            frame = self.attributes().persist()
            chosen, known = self.config.cohorts, self.plan.attributes
            s.replace(schemas.COHORT_EFFECTS, effects.cohort_effects(
                s.read(schemas.OUTCOMES), cohorts.members(chosen, frame, known), cohorts.attrition(chosen, frame, known),
                [x.name for x in simulator.scenarios], self.config.seed,
            ))
            frame.unpersist()
            stage.counts["rows"] = s.read(schemas.COHORT_EFFECTS).count()

    def attributes(self) -> DataFrame:
        """One row per patient with what cohort filters may name."""
        read = self.storage.read
        return cohorts.attributes(
            read(schemas.PATIENTS), read(schemas.TWINS), read(schemas.TWIN_PARAMETERS), read(schemas.TIMELINES), read(schemas.OUTCOMES),
            self.plan.attributes,
        )


def _changes(wanted: DataFrame, stored: DataFrame, identity: list[str]) -> tuple[DataFrame, DataFrame, DataFrame]:
    """What `stored` lacks of `wanted`, by identity: the rows to do and the patients to write (both persisted), and the stored rows of
    these patients that still hold."""
    done = stored.select(identity).distinct()
    todo = wanted.join(done, identity, "left_anti").persist()
    gone = done.join(wanted.select(identity), identity, "left_anti")
    changed = todo.select("patient_id").union(gone.select("patient_id")).distinct().persist()
    kept = stored.join(wanted.select(identity), identity, "left_semi").join(changed, "patient_id", "left_semi")
    return todo, changed, kept


def _by(df: DataFrame, column: str) -> dict[str, int]:
    """Counts by value of a column."""
    return {row[0]: row[1] for row in df.groupBy(column).count().collect()}
