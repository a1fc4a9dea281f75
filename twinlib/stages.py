"""The stages of a night, each from tables to tables: generate, ingest, fuse, fit, simulate, recommend, effects.

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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, reduce
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from twinlib import models, sources, synthetic
from twinlib.config import RunConfig, load
from twinlib.engine.kernel import Kernel
from twinlib.errors import ConfigError
from twinlib.fusion import packing, quality
from twinlib.fusion.ingest import ingest
from twinlib.fusion.layout import Layout, layout
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.population import fit as fitting
from twinlib.population import learning, priors, results, settings
from twinlib.population.patients import with_values
from twinlib.progress import progress
from twinlib.session import session
from twinlib.tables import open_storage, schemas
from twinlib.tables.contracts import Table
from twinlib.tables.runs import Runs, Stage
from twinlib.whatif import cohorts, effects, outcomes, publish, recommend
from twinlib.whatif import simulate as simulation
from twinlib.whatif.scenarios import load_scenarios

log = logging.getLogger("twinlib")
EPISODE = ["patient_id", "model", "episode"]


@dataclass(frozen=True)
class Plan:
    """A checked configuration: everything that can be known to be wrong before Spark starts has been looked at."""

    config: RunConfig
    layout: Layout
    fitter: fitting.Fitter
    simulator: simulation.Simulator | None
    policies: tuple[recommend.Policies, ...]
    attributes: cohorts.Attributes

    @classmethod
    def of(cls, path: str | Path, landing: bool = False) -> Plan:
        """Read and check configuration, model, prior, scenarios, cohorts, key and (unless they are yet to be made, or to land) raw files.

        Raises ConfigError or DataError.
        """
        config = load(path)
        model = models.find(config.fit.model)
        packed = layout(model, load_vocabulary(config.vocabulary), config.episodes, settings.covariates(config.learn))
        quality.check(config.episodes.leave_out)
        settings.check(config.learn, model)
        priors.check_version(config.fit.prior_version)
        fitter = fitting.Fitter(Kernel(model), priors.published(model), config.fit, config.seed)
        simulator = _simulator(config, fitter.kernel)
        names, found = ([s.name for s in simulator.scenarios], simulator.outcomes) if simulator else ([], ())
        if config.recommend and simulator is None:
            raise ConfigError("recommend: needs simulate")
        policies = tuple(recommend.Policies.of(r, names, found) for r in config.recommend)
        described = (tuple(q.name for q in model.fitted), model.covariates, *([tuple(o.name for o in found)] if simulator else []))
        known = cohorts.Attributes(*described)
        cohorts.check_all(config.cohorts, known)
        cohorts.check_subgroups(config.subgroups, known)
        sources.load_key(config.pseudonym_key)
        plan = cls(config, packed, fitter, simulator, policies, known)
        if config.generate is None and not landing:
            plan.check_sources()
        return plan

    def under(self, prior: priors.Prior) -> Plan:
        """The plan with fits and what-ifs under this prior and its values of what all patients share."""
        fitter = replace(self.fitter, kernel=with_values(self.fitter.kernel, prior.values), prior=prior)
        return replace(self, fitter=fitter, simulator=self.simulator and replace(self.simulator, kernel=fitter.kernel))

    def check_sources(self) -> None:
        """Check the raw files against their mappings. Raises ConfigError or DataError."""
        sources.check(self.config)


def _simulator(config: RunConfig, kernel: Kernel) -> simulation.Simulator | None:
    if config.simulate is None:
        return None
    c, model = config.simulate, kernel.model
    scenarios = load_scenarios(c.scenarios, model.agents, [q.name for q in model.parameters])
    found = outcomes.find(c.outcomes, model)
    return simulation.Simulator(kernel, scenarios, c.minimum_wear_fraction, found, c.mode, c.horizon, c.grid, config.seed)


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
            for stage in (self.generate, self.ingest, self.fuse, self.fit, self.simulate, self.recommend, self.effects):
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
            sensors, leave_out = load_vocabulary(self.config.vocabulary).sensors, self.config.episodes.leave_out
            s.append(schemas.SENSOR_QUALITY, quality.summary(s.read(schemas.OBSERVATIONS), sensors, leave_out, self.runs.run_id))
            for row in s.read(schemas.INGEST_COUNTS).collect():
                for name in ("rows_read", "accepted", "duplicates", "quarantined", "rows_ignored"):
                    stage.counts[f"{row.source}.{name}"] = row[name]
                    stage.counts[name] = stage.counts.get(name, 0) + row[name]
            stage.counts["patients"] = s.read(schemas.PATIENTS).count()
            if self.config.identity:
                stage.counts.update({f"identities_{k}": n for k, n in _by(s.read(schemas.IDENTITIES), "status").items()})

    def fuse(self) -> None:
        """Observations and exposures to packed timelines."""
        s = self.storage
        tables = (schemas.PATIENTS, schemas.OBSERVATIONS, schemas.EXPOSURES)
        versions = [s.version(t) for t in tables]
        with self._stage("fuse", ("episodes",), repr(self.plan.layout), *versions, writes=(schemas.TIMELINES,)) as stage:
            if stage.same:
                return stage.unchanged()
            patients, observations, exposures = (s.read(t) for t in tables)
            usable = quality.usable(observations, self.config.episodes.leave_out)
            s.replace(schemas.TIMELINES, packing.pack(usable, exposures, patients, self.plan.layout))
            stage.counts.update(_by(s.read(schemas.TIMELINES), "status"))

    def learn(self) -> None:
        """A new prior version from the timelines; fits use it where `fit: {prior_version: ...}` names it."""
        s, plan = self.storage, self.plan
        tables = (schemas.POPULATIONS, schemas.POPULATION_EFFECTS, schemas.POPULATION_TRACE, schemas.PHENOTYPES, schemas.POPULATION_MEMBERS, schemas.POPULATION_FITS)
        kernel = plan.fitter.kernel
        with self._stage("learn", ("learn", "seed"), s.version(schemas.TIMELINES), kernel.hash, writes=tables) as stage:
            if stage.same:
                return stage.unchanged()
            timelines = s.read(schemas.TIMELINES)
            learnt = learning.learn_population(self.spark, timelines, kernel, self.config.learn, self.config.seed, self.partitions)
            prior = results.prior(learnt)
            version, fit = prior.version, results.fit_row(learnt, prior.version, datetime.now(UTC))
            if fit["status"] != "diverged":
                self._versions(schemas.POPULATIONS, results.parameter_rows(learnt, prior), version)
                self._versions(schemas.POPULATION_EFFECTS, results.effect_rows(learnt, version), version)
                self._versions(schemas.PHENOTYPES, results.phenotype_rows(learnt, prior), version)
                found = learning.members(timelines, learnt, version, self.partitions).persist()
                kept = s.read(schemas.POPULATION_MEMBERS).where(F.col("prior_version") != version)
                s.replace(schemas.POPULATION_MEMBERS, kept.unionByName(found))
                found.unpersist()
            self._versions(schemas.POPULATION_TRACE, results.trace_rows(learnt, version), version)
            self._versions(schemas.POPULATION_FITS, [fit], version)
            stage.counts.update({k: fit[k] for k in ("patients", "patients_left_out", "patients_known", "readings", "iterations", "phenotypes")})
            log.info("prior_version=%s status=%s %s", version, fit["status"], fit["reason"] or "")

    def _versions(self, table: Table, rows: list[dict], version: str) -> None:
        """Make `rows` those of this prior version; other versions stay."""
        names = table.schema.fieldNames()
        fresh = self.spark.createDataFrame([tuple(r.get(n) for n in names) for r in rows], table.schema)
        kept = self.storage.read(table).where((F.col("prior_version") != version) | (F.col("model") != self.plan.fitter.model.name))
        self.storage.replace(table, kept.unionByName(fresh))

    @cached_property
    def prior(self) -> priors.Prior:
        """The prior that the configuration names. Raises ConfigError where it has not been learnt."""
        model, version = self.plan.fitter.model, self.config.fit.prior_version
        if version == priors.PUBLISHED:
            return priors.published(model)
        read = lambda t: [r.asDict() for r in self.storage.read(t).where(F.col("model") == model.name).collect()]  # noqa: E731
        return priors.find(model, version, read(schemas.POPULATION_FITS), read(schemas.POPULATIONS), read(schemas.POPULATION_EFFECTS))

    def fit(self) -> None:
        """A twin for every timeline whose content, model or prior has changed."""
        s, fitter = self.storage, self.plan.under(self.prior).fitter
        tables = (schemas.POPULATIONS, schemas.TWIN_PARAMETERS, schemas.TWINS)
        versions = (s.version(schemas.TIMELINES), fitter.model_version, fitter.prior.version)
        with self._stage("fit", ("fit", "seed"), *versions, writes=tables) as stage:
            if stage.same:
                return stage.unchanged()
            if fitter.prior.version == priors.PUBLISHED:
                self._versions(schemas.POPULATIONS, priors.rows(fitter.model, fitter.prior), priors.PUBLISHED)
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
        s, simulator = self.storage, self.plan.under(self.prior).simulator
        if simulator is None:
            return
        versions = (s.version(schemas.TIMELINES), s.version(schemas.TWINS), simulator.hash)
        with self._stage("simulate", ("simulate", "seed"), *versions, writes=(schemas.OUTCOMES,)) as stage:
            if stage.same:
                return stage.unchanged()
            timelines, twins, stored = (s.read(t) for t in (schemas.TIMELINES, schemas.TWINS, schemas.OUTCOMES))
            work = F.sha2(F.concat_ws("|", "timeline_hash", "model_version", "prior_version", F.lit(simulator.hash)), 256).substr(1, 16)
            twin = twins.select(
                *EPISODE, F.col("status").alias("twin_status"), F.col("reason").alias("twin_reason"), "draws", work.alias("work_hash")
            )
            rows = timelines.join(twin, EPISODE)
            identity = [*EPISODE, "work_hash"]
            todo, changed, kept = _changes(rows, stored, identity)
            stage.counts["episodes_simulated"] = todo.count()
            if changed.count():
                fresh = simulation.simulate(todo, simulator, self.partitions)
                s.replace_patients(schemas.OUTCOMES, fresh.unionByName(kept), changed)
            else:
                stage.unchanged()
            todo.unpersist(), changed.unpersist()
            stage.counts.update(_by(s.read(schemas.OUTCOMES), "status"))

    def recommend(self) -> None:
        """The best safe scenario of every patient, for every configured recommendation."""
        s, policies = self.storage, self.plan.policies
        if not policies:
            return
        with self._stage("recommend", ("recommend", "seed"), s.version(schemas.OUTCOMES), writes=(schemas.RECOMMENDATIONS,)) as stage:
            if stage.same:
                return stage.unchanged()
            found = [recommend.recommendations(s.read(schemas.OUTCOMES), p, self.config.seed, self.partitions) for p in policies]
            s.replace(schemas.RECOMMENDATIONS, reduce(DataFrame.unionByName, found))
            stage.counts.update(_by(s.read(schemas.RECOMMENDATIONS), "status"))

    def effects(self) -> None:
        """Mean effects of every cohort, and what its recommendations gain; both at once, as each could give away the other's small counts."""
        s, simulator, policies = self.storage, self.plan.simulator, self.plan.policies
        if simulator is None:
            return
        read = (schemas.OUTCOMES, schemas.TWINS, schemas.PATIENTS, *([schemas.RECOMMENDATIONS] if policies else []))
        tables = (schemas.COHORT_POLICIES, schemas.COHORT_EFFECTS) if policies else (schemas.COHORT_EFFECTS,)
        parts = ("cohorts", "subgroups", "disclosure", "recommend", "seed")
        with self._stage("effects", parts, *[s.version(t) for t in read], writes=tables) as stage:
            if stage.same:
                return stage.unchanged()
            frame = self.attributes().persist()
            members = cohorts.members(self.config.cohorts, frame, self.plan.attributes)
            members = members.join(cohorts.subgroups(self.config.subgroups, frame), "patient_id").persist()
            found = s.read(schemas.OUTCOMES)
            with_value = found.where("status = 'ok'").select("patient_id", F.concat("scenario", F.lit("|"), "outcome").alias("mark"))
            marks = [with_value, *[recommend.marks(s.read(schemas.RECOMMENDATIONS)) for _ in policies[:1]]]
            names, units = [x.name for x in simulator.scenarios], {o.name: o.unit for o in simulator.outcomes}
            wanted = [publish.mark(n, o) for n in names for o in units] + [f"{w}|{p.config.name}" for p in policies for w in recommend.MARKS]
            shown = publish.cells(members, publish.marks(frame, *marks), wanted, self.config.disclosure.smallest_cell)
            groups = self._groups(members)
            if policies:
                gains = [r for p in policies for r in recommend.policies_of_cohorts(found, members, p, self.config.seed).collect()]
                about = {p.config.name: (p.config.objective, p.unit) for p in policies}
                self._write(schemas.COHORT_POLICIES, publish.policy_rows(gains, groups, about, shown))
            summaries = effects.summaries(found, members, simulator.outcomes, self.config.seed).collect()
            rows = publish.effect_rows(summaries, groups, names, units, shown)
            self._write(schemas.COHORT_EFFECTS, rows)
            members.unpersist(), frame.unpersist()
            stage.counts["rows"], stage.counts["suppressed"] = len(rows), sum(r["suppressed"] for r in rows)

    def _groups(self, members: DataFrame) -> list[publish.Group]:
        """All cohorts, and the subgroups that some patient is in, in the configuration's order."""
        there = {(r[0], r[1]) for r in members.select("cohort", "subgroup").distinct().collect()}
        return [
            (c.name, name)
            for c in self.config.cohorts
            for name in [cohorts.ALL, *sorted(g for cohort, g in there if cohort == c.name and g != cohorts.ALL)]
        ]

    def _write(self, table: Table, rows: list[dict]) -> None:
        names = [c.name for c in table.columns]
        self.storage.replace(table, self.spark.createDataFrame([tuple(r.get(n) for n in names) for r in rows], table.schema))

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
