"""The stages of a night, each from tables to tables: generate, ingest, fuse, fit, simulate, recommend, effects; and learn, on its own.

A stage does nothing where its inputs have not changed; fit and simulate do only the patients whose content has changed. A stage
that writes several tables writes the one that decides "nothing to do" last, so a run that dies in between is done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property, reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from twinlib import alerts, sources, synthetic
from twinlib.engine.contract import Model
from twinlib.engine.kernel import Kernel
from twinlib.errors import DataError
from twinlib.fusion import packing, quality
from twinlib.fusion.ingest import ingest
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.plan import Plan
from twinlib.population import fit as fitting
from twinlib.population import change, learning, priors, promotion, recycled, results, rivals
from twinlib.runner import Runner
from twinlib.tables import schemas
from twinlib.tables.contracts import Table
from twinlib.tables.storage import bucket_of
from twinlib.whatif import cohorts, effects, publish, recommend
from twinlib.whatif import simulate as simulation

__all__ = ["Night", "Plan"]

log = logging.getLogger("twinlib")
EPISODE = ["patient_id", "model", "episode"]


class Night(Runner):
    """The stages, and the run of all of them."""

    @property
    def stages(self) -> tuple[Callable[[], None], ...]:
        return (self.generate, self.ingest, self.fuse, self.fit, self.simulate, self.recommend, self.effects)

    @cached_property
    def frozen(self) -> Plan:
        """The plan under the prior that the configuration names. Raises ConfigError where there is none."""
        return self.plan.under(promotion.chosen(self.storage, self.plan.fitter.model, self.config.fit.prior_version))

    def run(self) -> list[alerts.Alert]:
        """All stages, under the writer lock. Returns what exceeds a threshold, which stands in `alerts` too."""
        with self.storage.writer():
            self.frozen  # noqa: B018  (a prior that is not there is found now, not after hours of ingest)
            for table in schemas.TABLES.values():
                self.storage.check(table)
            for stage in self.stages:
                stage()
            return self._alerts()

    def preview(self) -> list[tuple[str, str, str]]:
        self.frozen  # noqa: B018
        return super().preview()

    def amount(self, stage: str, certain: bool) -> str:
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
        s, fitter = self.storage, self.frozen.fitter
        used = s.read(schemas.POPULATIONS).where((F.col("prior_version") == fitter.prior.version) & (F.col("model") == fitter.model.name))
        counts, twins, parameters = (s.read(t) for t in (schemas.INGEST_COUNTS, schemas.TWINS, schemas.TWIN_PARAMETERS))
        found = alerts.find(counts, twins, parameters, used, self.config.alerts)
        for alert in found:
            log.warning("alert: %s", alert, extra={"fields": {"alert": alert.alert, "subject": alert.subject, "value": alert.value}})
        if found:
            s.append(schemas.ALERTS, self.spark.createDataFrame(alerts.rows(self.runs.run_id, found), schemas.ALERTS.schema))
        return found

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
        inputs, parts = (sources.fingerprint(self.config, key), s.version(schemas.FORGOTTEN)), ("sources", "identity", "vocabulary", "as_of")
        with self._stage("ingest", parts, *inputs, reads=(schemas.FORGOTTEN,), writes=tables) as stage:
            if stage.same:
                return stage.unchanged()
            tombstones = frozenset(r[0] for r in s.read(schemas.FORGOTTEN).select("tombstone").collect())
            got = ingest(self.spark, self.config, key, tombstones)
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
        with self._stage("fuse", ("episodes",), repr(self.plan.layout), *versions, reads=tables, writes=(schemas.TIMELINES,)) as stage:
            if stage.same:
                return stage.unchanged()
            patients, observations, exposures = (s.read(t) for t in tables)
            usable = quality.usable(observations, self.config.episodes.leave_out)
            s.replace(schemas.TIMELINES, packing.pack(usable, exposures, patients, self.plan.layout))
            stage.counts.update(_by(s.read(schemas.TIMELINES), "status"))

    def learn(self) -> None:
        """A new prior version from the timelines; fits use it where `fit: {prior_version: ...}` names it. Rival models are learnt beside it."""
        s, plan, config, seed = self.storage, self.plan, self.config.learn, self.config.seed
        tables = (
            schemas.POPULATIONS, schemas.POPULATION_EFFECTS, schemas.POPULATION_TRACE, schemas.PHENOTYPES, schemas.POPULATION_MEMBERS,
            schemas.MODEL_COMPARISONS, schemas.POPULATION_FITS,
        )
        kernel, others = plan.fitter.kernel, [Kernel(m) for m in rivals.find(config, plan.fitter.model)]
        reads = (schemas.TIMELINES, *([schemas.TWINS] if config.source == "twins" else []))
        inputs = (*map(s.version, reads), *[k.hash for k in (kernel, *others)])
        with self._stage("learn", ("learn", "seed"), *inputs, reads=reads, writes=tables) as stage:
            if stage.same:
                return stage.unchanged()
            timelines = s.read(schemas.TIMELINES)
            own, drawn_under = self._with_twins(timelines, kernel.model) if config.source == "twins" else (timelines, None)
            learnt = learning.learn_population(self.spark, own, kernel, config, seed, self.partitions, drawn_under)
            candidates, fit = self._learnt(learnt, own)
            for k in others if candidates else ():
                rival = learning.learn_population(self.spark, timelines, k, rivals.settings_for(config, k.model), seed, self.partitions)
                candidates += self._learnt(rival, timelines)[0]
            if candidates and priors.PUBLISHED in config.rivals:
                candidates += self._members(rivals.published(kernel, config, seed, learnt.known), timelines, priors.PUBLISHED)
            found = rivals.comparisons(s.read(schemas.POPULATION_MEMBERS), candidates[0], candidates) if candidates else s.empty(schemas.MODEL_COMPARISONS)
            s.replace(schemas.MODEL_COMPARISONS, found)
            stage.counts.update({k: fit[k] for k in ("patients", "patients_left_out", "patients_known", "readings", "iterations", "phenotypes")})

    def _with_twins(self, timelines: DataFrame, model: Model) -> tuple[DataFrame, dict[str, priors.Prior]]:
        """Timelines beside the draws of their twins, and the priors under which these were drawn. Raises DataError where there are none."""
        found = recycled.joined(timelines, self.storage.read(schemas.TWINS), model)
        versions = [r.prior_version for r in found.select("prior_version").dropna().distinct().collect()]
        if not versions:
            raise DataError(f"learn.source: no twin of model {model.name} has draws of its present equations and timeline; fit first (with fit.power 1)")
        return found, {v: promotion.chosen(self.storage, model, v) for v in versions}

    def _learnt(self, learnt: learning.Learning, timelines: DataFrame) -> tuple[list[rivals.Candidate], dict]:
        """Write what was learnt: the model and its new version (none where learning has diverged), and the row of `population_fits`."""
        model, prior = learnt.model.name, results.prior(learnt)
        version, fit, out = prior.version, results.fit_row(learnt, prior.version, datetime.now(UTC)), []
        if fit["status"] != "diverged":
            self._put(schemas.POPULATIONS, results.parameter_rows(learnt, prior), model, version)
            self._put(schemas.POPULATION_EFFECTS, results.effect_rows(learnt, version), model, version)
            self._put(schemas.PHENOTYPES, results.phenotype_rows(learnt, prior), model, version)
            out = self._members(learnt, timelines, version)
        self._put(schemas.POPULATION_TRACE, results.trace_rows(learnt, version), model, version)
        self._put(schemas.POPULATION_FITS, [fit], model, version)
        log.info("model=%s prior_version=%s status=%s %s", model, version, fit["status"], fit["reason"] or "")
        return out, fit

    def _members(self, learnt: learning.Learning, timelines: DataFrame, version: str) -> list[rivals.Candidate]:
        """Write how every patient lies in a population."""
        model = learnt.model.name
        found = learning.members(timelines, learnt, version, self.partitions).persist()
        kept = self.storage.read(schemas.POPULATION_MEMBERS).where((F.col("prior_version") != version) | (F.col("model") != model))
        self.storage.replace(schemas.POPULATION_MEMBERS, kept.unionByName(found))
        found.unpersist()
        return [(model, version)]

    def _put(self, table: Table, rows: list[dict], model: str, version: str) -> None:
        """Make `rows` those of this model's prior version; other versions stay."""
        kept = self.storage.read(table).where((F.col("prior_version") != version) | (F.col("model") != model))
        self.storage.replace(table, kept.unionByName(self.storage.frame(table, rows)))

    def fit(self) -> None:
        """A twin for every timeline whose content, model or prior has changed."""
        s, fitter = self.storage, self.frozen.fitter
        tables = (schemas.POPULATIONS, schemas.TWIN_PARAMETERS, schemas.TWINS)
        versions = (s.version(schemas.TIMELINES), fitter.model_version, fitter.prior.version)
        with self._stage("fit", ("fit", "seed"), *versions, reads=(schemas.TIMELINES,), writes=tables) as stage:
            if stage.same:
                return stage.unchanged()
            self._keep_published()
            todo, changed, kept = self._fit_changes()
            stage.counts["episodes_fitted"], stage.counts["patients_changed"] = todo.count(), changed.count()
            if stage.counts["patients_changed"]:
                meter, before = fitting.Meter.on(self.spark), s.exists(schemas.TWINS)
                for some, patients in self._turns(todo, changed, stage.counts["episodes_fitted"]):
                    if before:
                        self._check(some, patients)
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

    def _check(self, todo: DataFrame, patients: DataFrame) -> None:
        """What new readings say of last night's twins; the row of an episode without new ones stays."""
        s, checker = self.storage, change.Checker(self.frozen.fitter, self.config.change.false_alarms)
        timelines = s.read(schemas.TIMELINES)
        found = change.checks(todo.select(timelines.columns), s.read(schemas.TWINS), checker, self.partitions).persist()
        kept = s.read(schemas.TWIN_CHECKS).join(timelines, EPISODE, "left_semi").join(patients, "patient_id", "left_semi").join(found, EPISODE, "left_anti")
        s.replace_patients(schemas.TWIN_CHECKS, found.unionByName(kept), patients)
        found.unpersist()

    def _keep_published(self) -> None:
        """The model's own prior among the rows of `populations`, as learning puts those of its versions there."""
        model, prior = self.frozen.fitter.model, self.frozen.fitter.prior
        if prior.version != priors.PUBLISHED:
            return
        rows = priors.rows(model, prior)
        ours = (F.col("model") == model.name) & (F.col("prior_version") == prior.version)
        stored = {r.parameter: r for r in self.storage.read(schemas.POPULATIONS).where(ours).collect()}
        if {n: {k: r[k] for k in rows[0]} for n, r in stored.items()} != {r["parameter"]: r for r in rows}:
            self._put(schemas.POPULATIONS, rows, model.name, prior.version)

    def _fit_changes(self):
        """Timelines to fit, patients to write, and the function that gives the stored twins of patients that still hold."""
        s, fitter = self.storage, self.frozen.fitter
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
        s, simulator = self.storage, self.frozen.simulator
        if simulator is None:
            return
        inputs = (schemas.TIMELINES, schemas.TWINS)
        versions = (*map(s.version, inputs), simulator.hash)
        with self._stage("simulate", ("simulate", "seed"), *versions, reads=inputs, writes=(schemas.OUTCOMES,)) as stage:
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
        s, simulator = self.storage, self.frozen.simulator
        work = F.sha2(F.concat_ws("|", "timeline_hash", "model_version", "prior_version", F.lit(simulator.hash)), 256).substr(1, 16)
        twin = s.read(schemas.TWINS).select(
            *EPISODE, F.col("status").alias("twin_status"), F.col("reason").alias("twin_reason"), "draws", work.alias("work_hash")
        )
        rows = s.read(schemas.TIMELINES).join(twin, EPISODE)
        return _changes(rows, lambda: s.read(schemas.OUTCOMES), [*EPISODE, "work_hash"])

    def recommend(self) -> None:
        """The best safe scenario of every patient, for every configured recommendation."""
        s, policies = self.storage, self.plan.policies
        if not policies:
            return
        reads, writes = (schemas.OUTCOMES,), (schemas.RECOMMENDATIONS,)
        with self._stage("recommend", ("recommend", "seed"), s.version(schemas.OUTCOMES), reads=reads, writes=writes) as stage:
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
        with self._stage("effects", parts, *map(s.version, read), reads=read, writes=tables) as stage:
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
                s.replace(schemas.COHORT_POLICIES, s.frame(schemas.COHORT_POLICIES, publish.policy_rows(gains, groups, about, shown)))
            summaries = effects.summaries(found, members, simulator.outcomes, self.config.seed).collect()
            rows = publish.effect_rows(summaries, groups, names, units, shown)
            s.replace(schemas.COHORT_EFFECTS, s.frame(schemas.COHORT_EFFECTS, rows))
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
