"""Learning a population on Spark: every iteration is one pass over packed rows, summed so that no bit depends on partitions.

Patients go to a fixed number of buckets by a hash; within a bucket they are summed one by one in their order, and the driver adds the
buckets in theirs. What the driver holds does not grow with the number of patients.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructField, StructType
from scipy.cluster.vq import kmeans2
from scipy.special import logsumexp

from twinlib.config import LearnConfig
from twinlib.engine.contract import Model
from twinlib.engine.kernel import Kernel
from twinlib.errors import DataError
from twinlib.models.batch import decode
from twinlib.population import learn, recycled, settings
from twinlib.population.design import Column, design
from twinlib.population.estimate import Estimate, Structure
from twinlib.population.expectation import Expected, Settings, Sums, expect
from twinlib.population.patients import Patients, occasion_columns
from twinlib.population.priors import Prior
from twinlib.tables.schemas import POPULATION_MEMBERS

BUCKETS = 64  # of patients; fixed, because the order of sums depends on it
ROWS = 256  # timelines per call of the engine
TASK = 250  # patients that are worth a task
WARM_UP = 2000  # patients on which EM begins where there are many more
LEVELS = 20  # most levels of a category
STARTS, ROUNDS, SMALLEST = 20, 30, 0.05  # of the search for clusters where a mixture begins; the least weight of one
READ = ["patient_id", "episode", "minutes", "step_minutes", "utc_offset_minutes", "signals", "inputs", "covariates"]
_SUMS = "bucket int, sums array<double>"


@dataclass(frozen=True)
class Worker:
    """Everything a worker needs for a pass; pickles small."""

    kernel: Kernel
    columns: tuple[Column, ...]
    estimate: Estimate
    structure: Structure
    settings: Settings
    twins: Mapping[str, Prior] | None = None  # the priors under which twins were fitted, by version, where their draws are learnt from

    def run(self, table: pa.Table) -> tuple[list[str], np.ndarray, Expected]:
        """Whole patients (rows of timelines, sorted by patient): their ids, numbers of episodes and E-step. An exception is the status of the
        patient that raised it."""
        ids = table.column("patient_id").to_pylist()
        at = np.array([0, *[i for i in range(1, len(ids)) if ids[i] != ids[i - 1]], len(ids)])
        who = [ids[i] for i in at[:-1]]
        try:
            if self.twins is not None:
                return self._recycled(table, at, who)
            batch = decode(table)
            with np.errstate(all="ignore"):  # what is not finite becomes a status
                data = batch.data(self.kernel.model, self.kernel.nominal_step)
                z = design(self.columns, [batch.covariates[i] for i in at[:-1]])
                return who, np.diff(at), expect(self.kernel, Patients(data, at), who, z, self.estimate, self.structure, self.settings)
        except Exception as e:
            if len(who) == 1:
                return who, np.diff(at), self._failed(f"error:{type(e).__name__}")
            parts = [self.run(table.slice(a, b - a))[2] for a, b in zip(at[:-1], at[1:])]
            joined = Expected(*[np.concatenate([getattr(x, f) for x in parts]) for f in Expected.__dataclass_fields__])
            return who, np.diff(at), joined

    def _recycled(self, table: pa.Table, at: np.ndarray, who: list[str]) -> tuple[list[str], np.ndarray, Expected]:
        """The E-step from the draws that the patients' twins have already."""
        rows = recycled.chosen(table, at)
        covariates = [{c["name"]: c["value"] for c in row["covariates"]} for row in rows]
        drawn = recycled.drawn(rows, covariates, len(self.structure.fitted), self.twins)
        return who, np.diff(at), recycled.expect(drawn, design(self.columns, covariates), self.estimate, self.structure, self.settings.information)

    def _failed(self, reason: str) -> Expected:
        p, c = len(self.structure.fitted), self.estimate.components
        sums = Sums(self.structure, c, self.settings.information).left_out()[None]
        nan = lambda *shape: np.full((1, *shape), np.nan)  # noqa: E731
        return Expected(np.array(["left_out"], object), np.array([reason], object), np.zeros(1, int), nan(), nan(), nan(p), nan(p), nan(c), sums)

    def totals(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """One row per bucket: its patients' sums, added one by one."""
        bucket, total = None, None
        for here, table in _patients(batches):
            sums = self.run(table)[2].sums
            if here != bucket:
                if total is not None:
                    yield _sums(bucket, total)
                bucket, total = here, np.zeros(sums.shape[1])
            total = np.add.accumulate(np.vstack([total, sums]), axis=0)[-1]
        if total is not None:
            yield _sums(bucket, total)

    def members(self, batches: Iterator[pa.RecordBatch], version: str) -> Iterator[pa.RecordBatch]:
        """Rows of `population_members`."""
        schema = to_arrow_schema(POPULATION_MEMBERS.schema, timezone="UTC")
        known = lambda x: None if np.isnan(x).any() else x.tolist()  # noqa: E731
        for _, table in _patients(batches):
            who, episodes, e = self.run(table)
            rows = [
                {
                    "patient_id": who[i], "model": self.kernel.model.name, "prior_version": version, "status": e.status[i], "reason": e.reason[i],
                    "learnt_from": False, "episodes": int(episodes[i]), "readings": int(e.readings[i]), "log_evidence": known(e.log_evidence[i]),
                    "log_evidence_se": known(e.log_evidence_se[i]), "parameters": list(self.structure.fitted), "eta": known(e.eta[i]),
                    "eta_sd": known(e.spread[i]), "phenotype_probabilities": known(e.components[i]),
                    "phenotype": None if np.isnan(e.components[i]).any() else int(e.components[i].argmax()) + 1,
                }
                for i in range(len(who))
            ]
            yield from pa.Table.from_pylist(rows, schema=schema).to_batches()


def _sums(bucket: int, total: np.ndarray) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([bucket], pa.int32()), pa.array([total.tolist()], pa.list_(pa.float64()))], names=["bucket", "sums"])


def _patients(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    """Whole patients of one bucket, about ROWS rows at a time, from rows sorted by bucket and patient."""
    rest: pa.Table | None = None

    def cut(table: pa.Table, last: bool):
        """Pieces to work on, and what may go on in the next batch."""
        buckets, ids = table.column("bucket").to_numpy(), table.column("patient_id").to_pylist()
        ends = [i for i in range(1, len(ids)) if ids[i] != ids[i - 1] or buckets[i] != buckets[i - 1]] + ([len(ids)] if last else [])
        pieces, begin = [], 0
        for k, end in enumerate(ends):
            final = k + 1 == len(ends)
            if end - begin >= ROWS or (final and last) or (end < len(ids) and buckets[end] != buckets[end - 1]):
                pieces.append((int(buckets[begin]), table.slice(begin, end - begin)))
                begin = end
        return pieces, table.slice(begin)

    for batch in batches:
        table = pa.Table.from_batches([batch])
        table = table if rest is None else pa.concat_tables([rest, table])
        pieces, rest = cut(table, False)
        yield from pieces
    if rest is not None and rest.num_rows:
        yield from cut(rest, True)[0]


def bucket() -> SparkColumn:
    return F.pmod(F.xxhash64("patient_id", F.lit("learn")), F.lit(BUCKETS)).cast("int")


def arranged(timelines: DataFrame, partitions: int, twins: bool = False) -> DataFrame:
    """The rows that may be fitted, by bucket and patient, ready for passes; with their twins instead of their readings where these are learnt from."""
    count = max(min(partitions, BUCKETS), 1)
    rows = timelines.where("status = 'ready'").select(bucket().alias("bucket"), *(recycled.READ if twins else READ))
    return rows.repartitionById(count, F.col("bucket") % count).sortWithinPartitions("bucket", "patient_id", "episode")


def sampled(timelines: DataFrame, size: int, seed: int) -> tuple[DataFrame, int]:
    """The rows of a sample of patients, in proportion from strata of alike numbers of readings (powers of two) and episodes (one, several), and the
    number of all patients. The same patients whatever the partitions."""
    readings = F.aggregate("signals", F.lit(0), lambda n, s: n + F.size(F.array_remove(s["values"], F.lit(float("nan")).cast("float"))))
    patients = timelines.where("status = 'ready'").groupBy("patient_id").agg(F.sum(readings).alias("readings"), F.count(F.lit(1)).alias("episodes"))
    patients = patients.select(
        "patient_id", F.floor(F.log2(F.greatest("readings", F.lit(1)))).alias("amount"), (F.col("episodes") > 1).alias("several")
    ).persist()
    known = patients.count()
    if known > size:
        order = F.row_number().over(Window.partitionBy("amount", "several").orderBy(F.xxhash64("patient_id", F.lit(seed)), "patient_id"))
        count = F.count(F.lit(1)).over(Window.partitionBy("amount", "several"))
        chosen = patients.select("patient_id", order.alias("k"), count.alias("n")).where(F.col("k") <= F.ceil(F.col("n") * F.lit(size / known)))
        timelines = timelines.join(chosen.select("patient_id"), "patient_id", "left_semi")
    patients.unpersist()
    return timelines, known


def columns(rows: DataFrame, config: LearnConfig) -> tuple[tuple[Column, ...], dict[str, int]]:
    """The columns that the configured effects need, their references and shares from the patients' first episodes, and how many patients lack
    each covariate. Raises DataError where a covariate is missing for all, does not vary, or has too many levels."""
    names = settings.covariates(config)
    if not names:
        return (), {}
    first = rows.withColumn("k", F.row_number().over(Window.partitionBy("patient_id").orderBy("episode"))).where("k = 1")
    patients = first.count()
    first = first.select(F.explode("covariates").alias("c")).select("c.name", "c.value")
    known = first.where(~F.isnan("value") & F.col("name").isin(*names)).persist()
    about = {r.name: r for r in known.groupBy("name").agg(
        F.count(F.lit(1)).alias("n"), F.percentile("value", F.lit(0.5)).alias("median"), F.min("value").alias("low"), F.max("value").alias("high")
    ).collect()}
    out: list[Column] = []
    for e in config.effects:
        where = f"learn.effects: covariate {e.covariate}"
        if e.covariate not in about:
            raise DataError(f"{where}: is missing for all {patients} patients")
        a = about[e.covariate]
        values = known.where(F.col("name") == e.covariate)
        if a.low == a.high and e.fixed is None:
            raise DataError(f"{where}: is the same for all patients who have it, so its effect cannot be learnt")
        if e.kind == "log" and a.low <= 0:
            raise DataError(f"{where}: has values that are not positive, so kind `log` cannot be used")
        if e.kind == "below":
            share = values.where(F.col("value") < e.reference).count() / a.n
            if share in (0.0, 1.0) and e.fixed is None:
                raise DataError(f"{where}: {'no' if share == 0 else 'every'} patient is below {e.reference:g}, so its effect cannot be learnt")
            out.append(Column(e.covariate, e.kind, e.reference, None, share))
        elif e.kind == "category":
            counts = sorted(((r["count"], r.value) for r in values.groupBy("value").count().collect()), key=lambda c: (-c[0], c[1]))
            if len(counts) > LEVELS:
                raise DataError(f"{where}: has {len(counts)} different values, more than the {LEVELS} of a category")
            reference = counts[0][1] if e.reference is None else e.reference
            out += [Column(e.covariate, e.kind, reference, v, n / a.n) for n, v in counts if v != reference]
        else:
            out.append(Column(e.covariate, e.kind, a.median if e.reference is None else e.reference))
    known.unpersist()
    return tuple(dict.fromkeys(out)), {n: patients - about[n].n for n in names}


@dataclass(frozen=True)
class Learning:
    """What a run has learnt. known: patients with data; missing: patients without each covariate; bics by number of components; traces: the
    iterations by number of components."""

    kernel: Kernel
    config: LearnConfig
    seed: int
    columns: tuple[Column, ...]
    missing: dict[str, int]
    known: int
    best: learn.Learnt
    bics: list[float]
    traces: dict[int, list[learn.Iteration]]
    twins: Mapping[str, Prior] | None = None

    @property
    def model(self) -> Model:
        return self.kernel.model

    def worker(self) -> Worker:
        return Worker(self.kernel, self.columns, self.best.estimate, self.best.structure, Settings(self.config.draws, self.seed), self.twins)


def learn_population(
    spark: SparkSession, timelines: DataFrame, kernel: Kernel, config: LearnConfig, seed: int, partitions: int, twins: Mapping[str, Prior] | None = None
) -> Learning:
    """Estimate the population of a model from its timelines. Raises ConfigError, or DataError where there is nothing to learn from.

    twins: priors by version, where `timelines` has the twins' columns too (`recycled.joined`) and their draws are learnt from.
    """
    settings.check(config, kernel.model)
    chosen, known = sampled(timelines, config.sample, seed)
    rows = arranged(chosen, min(partitions, 1 + min(known, config.sample) // TASK), twins is not None).persist()
    try:
        patients, several = rows.groupBy("patient_id").count().agg(F.count(F.lit(1)), F.count_if(F.col("count") > 1)).first()
        if patients < 2:
            raise DataError(f"learn: {patients} patients of model {kernel.model.name} have data, too few to learn from")
        found, missing = columns(rows, config)
        start, structure = settings.start(config, kernel.model, found, several > 0 and len(occasion_columns(kernel.model)) > 0)
        belief = settings.belief(config, start)
        shares = (max(WARM_UP / patients, 1 / BUCKETS), 1.0) if patients > 2 * WARM_UP else (1.0,)

        def step(estimate: Estimate, information: bool, share: float) -> np.ndarray:
            worker = Worker(kernel, found, estimate, structure, Settings(config.draws, seed, information), twins)
            part = rows if share == 1.0 else rows.where(F.col("bucket") < int(np.ceil(share * BUCKETS)))
            got = part.mapInArrow(worker.totals, _SUMS).collect()
            total = np.zeros(Sums(structure, estimate.components, information).size)
            for row in sorted(got, key=lambda r: r.bucket):
                total = total + np.array(row.sums)
            return total

        runs = [learn.run(step, start, structure, config.iterations, config.tolerance, shares, belief)]
        while len(runs) < config.phenotypes and runs[-1].status == "converged" and (len(runs) < 2 or runs[-1].bic < runs[-2].bic):
            worker = Worker(kernel, found, runs[0].estimate, structure, Settings(config.draws, seed), twins)
            runs.append(learn.run(step, _split(rows, worker, len(runs) + 1, seed), structure, config.iterations, config.tolerance, shares, belief))
        usable = [r for r in runs if r.status == "converged"] or runs[:1]
        best = min(usable, key=lambda r: r.bic)
        return Learning(
            kernel, config, seed, found, missing, known, best, [r.bic for r in runs], {r.estimate.components: r.trace for r in runs}, twins,
        )
    finally:
        rows.unpersist()


def _split(rows: DataFrame, worker: Worker, components: int, seed: int) -> Estimate:
    """Where EM of a mixture begins: the clusters of at most WARM_UP patients' posterior means."""
    schema = StructType([f for f in POPULATION_MEMBERS.schema.fields])
    few = rows.join(
        rows.select("patient_id").distinct().orderBy(F.xxhash64("patient_id", F.lit(seed)), "patient_id").limit(WARM_UP), "patient_id", "left_semi"
    ).select(*rows.columns).repartitionById(1, F.lit(0)).sortWithinPartitions("bucket", "patient_id", "episode")
    members = few.mapInArrow(lambda batches: worker.members(batches, ""), schema).where("status = 'used'").select("patient_id", "eta").orderBy("patient_id").collect()
    eta, estimate = np.array([m.eta for m in members]), worker.estimate
    centres, weights = mixture(eta, components, seed)
    between = np.einsum("c,cp,cq->pq", weights, centres - weights @ centres, centres - weights @ centres)
    omega = estimate.omega - np.where(worker.structure.omega, between, 0.0)
    low = np.linalg.eigvalsh(omega)[0] > 0 and (np.diag(omega) > 0.2 * np.diag(estimate.omega)).all()
    free = np.where(worker.structure.means, centres, 0.0)
    return estimate.moved(
        coefficients=np.vstack([estimate.coefficients[0] + free, estimate.coefficients[1:]]), omega=omega if low else 0.5 * estimate.omega, weights=weights
    )


def mixture(eta: np.ndarray, components: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (components, p) and weights of a normal mixture with one covariance, of eta (n, p): the likeliest that EM reaches from STARTS sets of
    k-means' clusters. One set may part the patients along a direction in which they are all alike."""
    rng, (n, p), best = np.random.default_rng(seed), eta.shape, (-np.inf, None, None)
    spread = np.where(eta.std(0) > 0, eta.std(0), 1.0)
    x = (eta - eta.mean(0)) / spread
    for _ in range(STARTS):
        label = kmeans2(x, x[rng.choice(n, components, replace=False)], minit="matrix", iter=5, missing="warn")[1]
        share = np.eye(components)[label]
        for _ in range(ROUNDS):
            weights = np.maximum(share.mean(0), SMALLEST)
            weights /= weights.sum()
            means = (share.T @ x) / np.maximum(share.sum(0), 1e-9)[:, None]
            off = x[:, None] - means
            covariance = np.einsum("nc,ncp,ncq->pq", share, off, off) / n + 1e-6 * np.eye(p)
            root = np.linalg.cholesky(covariance)
            distance = (np.linalg.solve(root, off.reshape(-1, p).T) ** 2).sum(0).reshape(n, components)
            joint = np.log(weights) - 0.5 * distance - np.log(np.diag(root)).sum()
            total = logsumexp(joint, axis=1)
            share = np.exp(joint - total[:, None])
        if total.sum() > best[0]:
            best = (float(total.sum()), means, weights)
    return eta.mean(0) + best[1] * spread, best[2]


def members(timelines: DataFrame, learning: Learning, version: str, partitions: int) -> DataFrame:
    """`population_members` of every patient with data, learnt from or not. Lazy."""
    worker = learning.worker()
    schema = StructType([StructField(f.name, f.dataType, True) for f in POPULATION_MEMBERS.schema.fields])
    out = arranged(timelines, partitions, learning.twins is not None).mapInArrow(lambda batches: worker.members(batches, version), schema)
    chosen, known = sampled(timelines, learning.config.sample, learning.seed)
    if known <= learning.config.sample:
        return POPULATION_MEMBERS.conform(out.withColumn("learnt_from", F.lit(True)))
    marks = chosen.select("patient_id").distinct().withColumn("chosen", F.lit(True))
    return POPULATION_MEMBERS.conform(out.join(marks, "patient_id", "left").withColumn("learnt_from", F.coalesce("chosen", F.lit(False))))


def settings_text(config: LearnConfig) -> str:
    return json.dumps(config.model_dump(mode="json"), sort_keys=True)
