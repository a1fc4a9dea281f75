"""Fit a twin to every timeline: pure functions on batches, and the Spark stage that runs them in Arrow batches."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

import numpy as np
import pyarrow as pa
from pyspark import Accumulator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import ArrayType, StructField, StructType
from scipy.special import ndtri

from twinlib.config import FitConfig
from twinlib.engine import mode, moves, normal, posterior, schedule
from twinlib.engine.contract import Model
from twinlib.engine.kernel import Kernel
from twinlib.engine.normal import Normal
from twinlib.models.batch import Batch, decode
from twinlib.population.priors import Prior
from twinlib.tables.schemas import TWIN_PARAMETERS, TWINS

LEVELS = np.array([0.05, 0.5, 0.95])
COARSEST = 0.25  # share of a reading's predicted SD by which halving the integration's step may change the replay at its worst instant
METHOD = hashlib.sha256("".join(map(inspect.getsource, (mode, moves, normal, posterior, schedule))).encode()).hexdigest()
RESCUES = 3  # further starts for a patient whose fit has not converged

_SUMMARY = StructType([f for f in TWIN_PARAMETERS.schema.fields if f.name not in ("patient_id", "model", "episode")])


@dataclass
class Stopwatch:
    """Seconds spent in the blocks that it guards."""

    seconds: float = 0.0

    def __enter__(self):
        self._began = time.perf_counter()

    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self._began


@dataclass(frozen=True)
class Fitter:
    """Everything a worker needs to fit a batch; pickles small (the kernel travels as text)."""

    kernel: Kernel
    prior: Prior
    config: FitConfig
    seed: int

    @property
    def model(self) -> Model:
        return self.kernel.model

    @cached_property
    def model_version(self) -> str:
        """The model's version, and a hash of its equations, the method and what else decides the result."""
        settings = self.config.model_dump(mode="json", exclude={"batch_rows", "model", "prior_version"})
        text = repr((self.kernel.hash, METHOD, sorted(settings.items()), self.seed, self.prior.digest))
        return f"{self.model.version}+{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def fit(self, batch: Batch, watch: Stopwatch) -> list[dict]:
        """One dictionary of `twins` values (without identity and versions) per row of the batch. `watch` times the engine."""
        with watch:
            modes, covariance, rows, found = self._estimate(batch)
        out = [{"status": s, "reason": r, "iterations": int(i)} for s, r, i in zip(modes.status, modes.reason, modes.iterations)]
        for a, r in enumerate(rows):
            if modes.status[r] != "converged":  # the integration is too coarse for it: what it gave says nothing
                out[r]["numerical_error"] = found["numerical_error"][a].item()
                continue
            out[r] |= {"last_minute": batch.last_minute(self.model, r), "parameters": [q.name for q in self.model.fitted], "mode": modes.theta[r].tolist(), "covariance": covariance[r].ravel().tolist()}
            out[r] |= {name: values[a].tolist() if isinstance(values, np.ndarray) else values[a] for name, values in found.items()}
        return out

    def _estimate(self, batch: Batch):
        """Modes and Laplace covariances of all rows; the rows that have a posterior, and what is known of them (columns of `twins`)."""
        model, kernel = self.model, self.kernel
        with np.errstate(all="ignore"):  # what is not finite becomes a status
            data = batch.data(model, kernel.nominal_step)
        prior = self.prior.normal(batch.covariates)
        modes = mode.find_from(kernel, data, prior, self._starts(batch, prior), self.config.maximum_iterations, self.config.starts > 1)
        power = self.config.power
        covariance = posterior.covariance(posterior.powered(modes.hessian, prior, power))
        broken = ~np.isfinite(covariance).all((1, 2)) & (modes.status == "converged")
        modes.status[broken], modes.reason[broken] = "failed", "singular_hessian"

        rows = np.flatnonzero(modes.status == "converged")
        if not rows.size:
            return modes, covariance, rows, {}
        keys, part, prior = [batch.ids[r] for r in rows], data.take(rows), prior.take(rows)
        theta, readings = modes.theta[rows], part.counts()
        sampled = posterior.sample(kernel, part, prior, theta, covariance[rows], keys, self.seed, self.config.importance_draws, power)
        kept = posterior.resample(sampled, keys, self.seed, self.config.draws)
        if self.config.moves:
            kept, _ = moves.move(kernel, part, prior, kept, theta, covariance[rows], keys, self.seed, self.config.moves, power)
        constant = prior.log_constant - 0.5 * readings * np.log(2 * np.pi)
        known = lambda x: [None if np.isnan(v) else v for v in x.tolist()]  # noqa: E731
        checks, coarse = self._check(theta, part)
        modes.status[rows[coarse]], modes.reason[rows[coarse]] = "failed", "integration_error"
        return modes, covariance, rows, {
            "n_observations": readings,
            "log_posterior": constant - modes.objective[rows],
            "log_evidence": known(sampled.log_evidence),
            "log_evidence_se": known(sampled.log_evidence_se),
            "pareto_k": sampled.pareto_k,
            "effective_draws": sampled.effective_draws,
            "spectrum": posterior.spectrum(sampled, prior),
            "draws": kept.reshape(len(rows), -1),
            "summary": self._summaries(sampled, prior),
        } | checks

    def _starts(self, batch: Batch, prior: Normal) -> list[np.ndarray]:
        """The prior mean, then keyed draws of the prior (Sobol): for patients that have not converged, or for all where `starts` asks."""
        count = max(self.config.starts - 1, RESCUES)
        z = ndtri(posterior.uniforms([("start", *k) for k in batch.ids], self.seed, count, len(self.prior.mean)))
        return [prior.mean, *(prior.mean + prior.sd * z[:, s] for s in range(count))]

    def _check(self, theta: np.ndarray, data) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """How well the twin at its mode follows the readings of the first signal, and how exact the integration is; where it is too coarse."""
        who = np.arange(len(theta))
        e, v = self.kernel.innovations(theta, who, data)
        noise, start = self.kernel.smooth(theta, who, data)
        replay = self.kernel.simulate(theta, who, data, noise, start)
        fine = self.kernel.simulate(theta, who, data, noise, start, halvings=1)
        y, at = data.readings[:, 0], data.slot_at[:-1]
        seen = ~np.isnan(y)
        count = np.add.reduceat(seen, at)
        mean = lambda x: np.add.reduceat(np.where(seen, x, 0.0), at) / count  # noqa: E731
        error = np.maximum.reduceat(np.abs(fine[:, 0] - replay[:, 0]), at)
        with np.errstate(all="ignore"):
            return {
                "fit_rmse": np.sqrt(mean((y - replay[:, 0]) ** 2)),
                "fit_mard_percent": 100.0 * mean(np.abs((y - replay[:, 0]) / y)),
                "forecast_rmse": np.sqrt(mean(e[:, 0] ** 2)),
                "numerical_error": error,
            }, ~(error <= COARSEST * np.sqrt(mean(v[:, 0])))

    def _summaries(self, sampled: posterior.Posterior, prior: Normal) -> list[list[dict]]:
        """What analysts read of every row: one dictionary per parameter."""
        model, w = self.model, sampled.weights[:, None]
        draws = sampled.draws.swapaxes(1, 2)
        natural = np.ascontiguousarray(model.fitted_natural(sampled.draws).swapaxes(1, 2))
        mean = (w * natural).sum(-1)
        sd = np.sqrt((w * (natural - mean[..., None]) ** 2).sum(-1))
        off = draws - (w * draws).sum(-1, keepdims=True)
        shrinkage = (w * off**2).sum(-1) / prior.sd**2
        q05, q50, q95 = posterior.quantiles(natural, w, LEVELS)
        return [
            [
                {
                    "parameter": q.name, "unit": q.unit, "mean": float(mean[a, j]), "sd": float(sd[a, j]), "q05": float(q05[a, j]),
                    "q50": float(q50[a, j]), "q95": float(q95[a, j]), "shrinkage": float(shrinkage[a, j]),
                    "identified": bool(shrinkage[a, j] < 0.5),
                }
                for j, q in enumerate(model.fitted)
            ]
            for a in range(len(mean))
        ]

    def run(self, table: pa.Table, watch: Stopwatch | None = None) -> list[dict]:
        """Rows of the `timelines` table to dictionaries with all columns of `twins` and the parameters' `summary`.

        Rows that may not be fitted keep their reason. An exception is a status of the row that raised it: the batch is fitted
        again row by row, so the other rows' results are what they would have been.
        """
        watch = watch or Stopwatch()
        status = table.column("status").to_pylist()
        results: list[dict] = [{"status": "insufficient_data", "reason": r} for r in table.column("reason").to_pylist()]
        ready = [i for i, s in enumerate(status) if s == "ready"]
        try:
            fitted = self.fit(decode(table.take(ready)), watch) if ready else []
        except Exception as e:
            if len(ready) > 1:
                fitted = [self.run(table.slice(i, 1), watch)[0] for i in ready]
            else:
                fitted = [{"status": "failed", "reason": f"error:{type(e).__name__}"}]
        starts = table.column("start").to_pylist()
        for i, f in zip(ready, fitted):
            last = f.pop("last_minute", None)
            results[i] = f if last is None else f | {"last_reading": starts[i] + timedelta(minutes=float(last))}
        names = ("patient_id", "model", "episode")
        for row, ids in zip(results, zip(*[table.column(n).to_pylist() for n in names])):
            row.update(zip(names, ids))
        for row, h in zip(results, table.column("content_hash").to_pylist()):
            row.update(timeline_hash=h, model_version=self.model_version, prior_version=self.prior.version)
        return results


def schema() -> StructType:
    """Columns of a fitted row: those of `twins`, and `summary`, one struct per parameter."""
    return StructType([*TWINS.schema.fields, StructField("summary", ArrayType(_SUMMARY), True)])


@dataclass(frozen=True)
class Meter:
    """What the workers add up: seconds in the engine, and of compiling (or loading) its kernels. A task that is run again counts again."""

    engine: Accumulator[float]
    compilation: Accumulator[float]

    @classmethod
    def on(cls, spark: SparkSession) -> Meter:
        return cls(spark.sparkContext.accumulator(0.0), spark.sparkContext.accumulator(0.0))


def fit(timelines: DataFrame, fitter: Fitter, partitions: int, meter: Meter) -> DataFrame:
    """Fit all rows of `timelines`: a frame with the columns of `twins` and `summary`. Lazy; persist it before it is used twice."""
    arrow = to_arrow_schema(schema(), timezone="UTC")
    rows, engine, compilation = fitter.config.batch_rows, meter.engine, meter.compilation

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        compilation.add(fitter.kernel.compile())
        watch = Stopwatch()
        for batch in batches:
            table = pa.Table.from_batches([batch])
            for first in range(0, table.num_rows, rows):
                yield from pa.Table.from_pylist(fitter.run(table.slice(first, rows), watch), schema=arrow).to_batches()
        engine.add(watch.seconds)

    return timelines.repartition(partitions, "patient_id", "episode").mapInArrow(run, schema())


def twins(fitted: DataFrame) -> DataFrame:
    """The `twins` table of fitted rows."""
    return TWINS.conform(fitted.drop("summary"))


def twin_parameters(fitted: DataFrame) -> DataFrame:
    """The `twin_parameters` table of fitted rows."""
    return TWIN_PARAMETERS.conform(fitted.select("patient_id", "model", "episode", F.explode("summary").alias("s")).select(
        "patient_id", "model", "episode", "s.*"
    ))
