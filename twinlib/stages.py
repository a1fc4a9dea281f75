"""The stages of a night, each from tables to tables: generate, ingest, fuse, fit, simulate, effects.

A stage does nothing where its inputs have not changed; fit and simulate do only the patients whose content has changed. A stage
that writes several tables writes the one that decides "nothing to do" last, so a run that dies in between is done again.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib import alerts, models, sources, synthetic
from twinlib.config import RunConfig, load
from twinlib.engine.kernel import Kernel
from twinlib.errors import ConfigError, TwinlibError
from twinlib.fusion import packing
from twinlib.fusion.ingest import ingest
from twinlib.metrics import Tasks
from twinlib.population import fit as fitting
from twinlib.population import priors, promotion
from twinlib.progress import progress
from twinlib.session import session
from twinlib.tables import lineage, open_storage, schemas
from twinlib.tables.contracts import Table
from twinlib.tables.runs import Runs, Stage
from twinlib.tables.storage import bucket_of
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
    def of(cls, path: str | Path, as_of: datetime | None = None) -> Plan:
        """Read and check configuration, model, prior, scenarios, cohorts, key and (unless they are yet to be made) raw files.

        Raises ConfigError or DataError.
        """
        config = load(path, as_of)
        model = models.find(config.fit.model)
        packing.check(config.episodes, model.name, model.agents, STEP)
        lacking = set(model.covariates) - set(STAND_INS)
        if lacking:
            raise ConfigError(f"model {model.name}: no stand-in for covariates {', '.join(sorted(lacking))}; known: {', '.join(STAND_INS)}")
        # which prior it is can only be known with the tables at hand: see Night
        fitter = fitting.Fitter(Kernel(model), priors.published(model), config.fit, config.seed)
        simulator = None
        if config.simulate:
            scenarios = load_scenarios(config.simulate.scenarios, model.agents)
            simulator = simulation.Simulator(fitter.kernel, scenarios, config.simulate.minimum_wear_fraction)
        known = cohorts.Attributes(tuple(q.name for q in model.fitted), model.covariates)
        cohorts.check_all(config.cohorts, known)
        sources.load_key(config.pseudonym_key)
        plan = cls(config, fitter, simulator, known)
        if config.generate is None:
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

    @property
    def metrics(self) -> dict[str, float]:
        return self.stage.metrics

    def unchanged(self) -> None:
        self.stage.unchanged()


@dataclass(frozen=True)
class Preview(Exception):  # noqa: N818  (no error: how a stage says what it would do, and stops before it does it)
    """What a stage would do: `same` where its inputs are those of its last run, so nothing."""

    stage: str
    same: bool


class Night:
    """One run: a plan on a Spark session and a storage, stage by stage."""

    def __init__(self, plan: Plan, spark: SparkSession | None = None):
        self.config = plan.config
        self.spark = spark or session(f"twinlib {plan.config.name}", dict(plan.config.spark), plan.config.storage.format == "delta")
        self.storage = open_storage(self.spark, plan.config)
        prior = promotion.chosen(self.storage, plan.fitter.model, self.config.fit.prior_version)
        self.plan = replace(plan, fitter=replace(plan.fitter, prior=prior))
        self.runs = Runs(self.storage, plan.config)
        self._preview = False
        self._versions: dict[str, str] = {}  # of the tables that this run has written or found up to date

    @cached_property
    def partitions(self) -> int:
        """Tasks of the compute stages: enough for balance and progress, few enough to amortise their start."""
        return 8 * self.spark.sparkContext.defaultParallelism

    @property
    def stages(self) -> tuple[Callable[[], None], ...]:
        """In the order in which they run."""
        return (self.generate, self.ingest, self.fuse, self.fit, self.simulate, self.effects)

    def run(self) -> list[alerts.Alert]:
        """All stages, under the writer lock. Returns what exceeds a threshold, which stands in `alerts` too."""
        with self.storage.writer():
            for table in schemas.TABLES.values():
                self.storage.check(table)
            for stage in self.stages:
                stage()
            return self._alerts()

    def preview(self) -> list[tuple[str, str, str]]:
        """(stage, "unchanged" | "run" | "perhaps", how much) of what `run` would do now. Nothing is written.

        What comes after a stage that would run can only be known when that has run: "perhaps", with what its last run did.
        """
        self._preview, out, certain = True, [], True
        try:
            for stage in self.stages:
                try:
                    stage()
                except TwinlibError:
                    if certain:
                        raise
                    out.append((stage.__name__, "perhaps", ""))  # its input is yet to be made
                except Preview as found:
                    verdict = ("unchanged" if found.same else "run") if certain else "perhaps"
                    out.append((found.stage, verdict, "" if verdict == "unchanged" else self._amount(found.stage, certain)))
                    certain = certain and found.same
        finally:
            self._preview = False
        return out

    def _amount(self, stage: str, certain: bool) -> str:
        """How much a stage would do, in words."""
        if stage == "generate":
            return f"{self.config.generate.patients} patients"
        if stage == "ingest":
            files = [f for source in sources.open_sources(self.config) for _, group in source.files() for f in group]
            return f"{len(files)} files, {sum(f.size for f in files) / 2**20:.1f} MB"
        if certain and stage in ("fit", "simulate"):
            todo, changed, _ = self._fit_changes() if stage == "fit" else self._simulate_changes()
            return f"{todo.count()} episodes of {changed.count()} patients"
        last = self.storage.read(schemas.RUNS).where((F.col("stage") == stage) & (F.col("status") == "done")).orderBy(F.desc("sequence")).first()
        done = {"fit": "episodes_fitted", "simulate": "episodes_simulated"}.get(stage)
        return "" if last is None or done not in last.counts else f"the last time {last.counts[done]} episodes"

    def _alerts(self) -> list[alerts.Alert]:
        """Find what exceeds a threshold, log it and write it down."""
        s, prior = self.storage, self.plan.fitter.prior.version
        used = s.read(schemas.POPULATIONS).where((F.col("prior_version") == prior) & (F.col("model") == self.plan.fitter.model.name))
        counts, twins, parameters = (s.read(t) for t in (schemas.INGEST_COUNTS, schemas.TWINS, schemas.TWIN_PARAMETERS))
        found = alerts.find(counts, twins, parameters, used, self.config.alerts)
        for alert in found:
            log.warning("alert: %s", alert, extra={"fields": {"alert": alert.alert, "subject": alert.subject, "value": alert.value}})
        if found:
            s.append(schemas.ALERTS, self.spark.createDataFrame(alerts.rows(self.runs.run_id, found), schemas.ALERTS.schema))
        return found

    @contextmanager
    def _stage(
        self, name: str, parts: tuple[str, ...], *inputs: str, reads: tuple[Table, ...] = (), writes: tuple[Table, ...] = ()
    ) -> Iterator[Work]:
        """A stage in the manifest, with progress, metrics, one log line and its lineage.

        parts: the parts of the configuration that the stage reads; inputs: versions or hashes of what else it reads. `same` where both
        are those of its last run and its tables are there. reads: the tables among what it reads.
        """
        digest = hashlib.sha256("\x1f".join(inputs).encode()).hexdigest()[:16]
        same = self.runs.last_input_hash(name, parts) == digest and all(self.storage.exists(t) for t in writes)
        if self._preview:
            raise Preview(name, same)
        began, work, tasks = time.monotonic(), None, Tasks(self.spark)
        try:
            with self.runs.stage(name, digest, parts) as stage, progress(self.spark, name):
                work = Work(stage, same)
                yield work
                stage.metrics |= tasks.measure(time.monotonic() - began)
                stage.tables |= {t.name: self.storage.version(t) for t in writes}
                self._versions |= stage.tables
        finally:
            error, seconds = sys.exc_info()[1], time.monotonic() - began
            counted = {k: v for k, v in sorted(work.counts.items()) if "." not in k} if work else {}
            state = "failed" if error else work.stage.status
            fields = {"run_id": self.runs.run_id, "stage": name, "status": state, "seconds": round(seconds, 3), **counted}
            words = " ".join(f"{k}={v}" for k, v in counted.items())
            log.info("stage=%s status=%s seconds=%.1f %s", name, state, seconds, words, extra={"fields": fields})
            self._lineage(name, reads, writes, work.stage if work else None, error)

    def _lineage(self, name: str, reads, writes, stage: Stage | None, error: BaseException | None) -> None:
        """The stage's event; a failure to write it does not hide how the stage ended."""
        message = None if error is None else str(error) if isinstance(error, TwinlibError) else type(error).__name__
        try:
            read = {t.name: self._versions.get(t.name) or self.storage.version(t) for t in reads}
            lineage.write(self.storage, self.runs.run_id, lineage.event(
                self.storage, self.config.name, self.runs.run_id, name, "FAIL" if error else "COMPLETE", datetime.now(timezone.utc),
                read, dict(stage.tables) if stage else {}, {t.name: t for t in writes}, dict(stage.counts) if stage else {}, message,
            ))
        except (OSError, TwinlibError) as e:
            log.warning("stage=%s: its lineage could not be written: %s", name, type(e).__name__)

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
        tables = (schemas.PATIENTS, schemas.OBSERVATIONS, schemas.EXPOSURES, schemas.QUARANTINE, schemas.INGEST_COUNTS)
        inputs = (sources.fingerprint(self.config, key), s.version(schemas.FORGOTTEN))
        with self._stage("ingest", ("sources", "vocabulary", "as_of"), *inputs, reads=(schemas.FORGOTTEN,), writes=tables) as stage:
            if stage.same:
                return stage.unchanged()
            tombstones = frozenset(r[0] for r in s.read(schemas.FORGOTTEN).select("tombstone").collect())
            got = ingest(self.spark, self.config, key, tombstones)
            for table, df in zip(tables, (got.patients, got.observations, got.exposures, got.quarantine, got.counts)):
                s.replace(table, df)
            got.release()
            for row in s.read(schemas.INGEST_COUNTS).collect():
                for name in ("rows_read", "accepted", "duplicates", "quarantined"):
                    stage.counts[f"{row.source}.{name}"] = row[name]
                    stage.counts[name] = stage.counts.get(name, 0) + row[name]
            stage.counts["patients"] = s.read(schemas.PATIENTS).count()

    def fuse(self) -> None:
        """Observations and exposures to packed timelines."""
        s, model = self.storage, self.plan.fitter.model
        tables = (schemas.PATIENTS, schemas.OBSERVATIONS, schemas.EXPOSURES)
        versions = [s.version(t) for t in tables]
        with self._stage("fuse", ("episodes",), model.name, *versions, reads=tables, writes=(schemas.TIMELINES,)) as stage:
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
        with self._stage("fit", ("fit", "seed"), *versions, reads=(schemas.TIMELINES,), writes=tables) as stage:
            if stage.same:
                return stage.unchanged()
            self._keep_prior()
            todo, changed, kept = self._fit_changes()
            stage.counts["episodes_fitted"], stage.counts["patients_changed"] = todo.count(), changed.count()
            if stage.counts["patients_changed"]:
                meter = fitting.Meter.on(self.spark)
                for some, patients in self._turns(todo, changed, stage.counts["episodes_fitted"]):
                    fitted = fitting.fit(some.select(schemas.TIMELINES.schema.names), fitter, self.partitions, meter).persist()
                    same = kept(patients).select(EPISODE)
                    parameters = s.read(schemas.TWIN_PARAMETERS).join(same, EPISODE, "left_semi")
                    s.replace_patients(schemas.TWIN_PARAMETERS, fitting.twin_parameters(fitted).unionByName(parameters), patients)
                    s.replace_patients(schemas.TWINS, fitting.twins(fitted).unionByName(kept(patients)), patients)
                    fitted.unpersist()
                stage.metrics.update(engine_seconds=meter.engine.value, compile_seconds=meter.compilation.value)
            else:
                stage.unchanged()
            todo.unpersist(), changed.unpersist()
            stage.counts.update(_by(s.read(schemas.TWINS), "status"))

    def _keep_prior(self) -> None:
        """The prior in use among the rows of `populations`; other versions stay."""
        s, fitter = self.storage, self.plan.fitter
        rows = self.spark.createDataFrame(priors.rows(fitter.model, fitter.prior), schemas.POPULATIONS.schema)
        stored = s.read(schemas.POPULATIONS)
        others = stored.where((F.col("model") != fitter.model.name) | (F.col("prior_version") != fitter.prior.version))
        if not s.exists(schemas.POPULATIONS) or stored.exceptAll(others).exceptAll(rows).count() or rows.exceptAll(stored).count():
            s.replace(schemas.POPULATIONS, others.unionByName(rows))

    def _fit_changes(self):
        """Timelines to fit, patients to write, and the function that gives the stored twins of patients that still hold."""
        s, fitter = self.storage, self.plan.fitter
        wanted = s.read(schemas.TIMELINES).withColumns({
            "timeline_hash": F.col("content_hash"), "model_version": F.lit(fitter.model_version), "prior_version": F.lit(fitter.prior.version)
        })
        return _changes(wanted, lambda: s.read(schemas.TWINS), [*EPISODE, "timeline_hash", "model_version", "prior_version"])

    def _turns(self, todo: DataFrame, changed: DataFrame, episodes: int) -> Iterator[tuple[DataFrame, DataFrame]]:
        """Work and patients in turns of about `checkpoint_episodes`, whole buckets at a time: a run that dies loses one turn."""
        turns = max(1, min(self.config.storage.buckets, -(-episodes // self.config.checkpoint_episodes)))
        for turn in range(turns):
            mine = F.pmod(bucket_of(self.config.storage.buckets), F.lit(turns)) == turn
            yield (todo, changed) if turns == 1 else (todo.where(mine), changed.where(mine))

    def simulate(self) -> None:
        """All scenarios for every twin whose twin or scenarios have changed."""
        s, simulator = self.storage, self.plan.simulator
        if simulator is None:
            return
        inputs = (schemas.TIMELINES, schemas.TWINS)
        with self._stage("simulate", ("simulate",), *map(s.version, inputs), simulator.hash, reads=inputs, writes=(schemas.OUTCOMES,)) as stage:
            if stage.same:
                return stage.unchanged()
            todo, changed, kept = self._simulate_changes()
            stage.counts["episodes_simulated"] = todo.count()
            if changed.count():
                for some, patients in self._turns(todo, changed, stage.counts["episodes_simulated"]):
                    fresh = simulation.simulate(some, simulator, self.partitions)
                    s.replace_patients(schemas.OUTCOMES, fresh.unionByName(kept(patients)), patients)
            else:
                stage.unchanged()
            todo.unpersist(), changed.unpersist()
            stage.counts.update(_by(s.read(schemas.OUTCOMES), "status"))

    def _simulate_changes(self):
        """Twins to simulate, patients to write, and the function that gives the stored outcomes of patients that still hold."""
        s, simulator = self.storage, self.plan.simulator
        work = F.sha2(F.concat_ws("|", "timeline_hash", "model_version", "prior_version", F.lit(simulator.hash)), 256).substr(1, 16)
        twin = s.read(schemas.TWINS).select(
            *EPISODE, F.col("status").alias("twin_status"), F.col("reason").alias("twin_reason"), "draws", work.alias("work_hash")
        )
        rows = s.read(schemas.TIMELINES).join(twin, EPISODE)
        return _changes(rows, lambda: s.read(schemas.OUTCOMES), [*EPISODE, "work_hash"])

    def effects(self) -> None:
        """Mean effects of every cohort."""
        s, simulator = self.storage, self.plan.simulator
        if simulator is None:
            return
        inputs = (schemas.OUTCOMES, schemas.TWINS, schemas.PATIENTS)
        with self._stage("effects", ("cohorts", "seed"), *map(s.version, inputs), reads=inputs, writes=(schemas.COHORT_EFFECTS,)) as stage:
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


Kept = Callable[[DataFrame], DataFrame]


def _changes(wanted: DataFrame, stored: Callable[[], DataFrame], identity: list[str]) -> tuple[DataFrame, DataFrame, Kept]:
    """What `stored` lacks of `wanted`, by identity: the rows to do and the patients to write (both persisted), and a function from some
    of these patients to their stored rows that still hold."""
    done = stored().select(identity).distinct()
    todo = wanted.join(done, identity, "left_anti").persist()
    gone = done.join(wanted.select(identity), identity, "left_anti")
    changed = todo.select("patient_id").union(gone.select("patient_id")).distinct().persist()

    def kept(patients: DataFrame) -> DataFrame:
        return stored().join(wanted.select(identity), identity, "left_semi").join(patients, "patient_id", "left_semi")

    return todo, changed, kept


def _by(df: DataFrame, column: str) -> dict[str, int]:
    """Counts by value of a column."""
    return {row[0]: row[1] for row in df.groupBy(column).count().collect()}
