"""Has the patient changed? New readings against the posterior of last night's twin.

A predictive check (Box 1980, 10.2307/2982063) on innovations (Mehra & Peschon 1971, 10.1016/0005-1098(71)90028-8). Under the true parameters
each reading less its prediction from all before it, in its SD, is standard normal and independent of the others. Last night's twin knows the
parameters as m + L z, z standard normal, L L' the posterior covariance. The score g of the new readings by z, at the posterior mean, has the
covariance H + H^2, H the information that they carry: their own scatter, and what the twin did not know. So g' (H + H^2)^-1 g is chi-squared with as
many degrees as there are directions in which parameters move readings, whatever the amounts of old and new data (a score test, Rao 1948,
of the parameters against the posterior). What the parameters cannot explain of the innovations is chi-squared too, and says whether
readings scatter more than they should.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema
from scipy.stats import chi2

from twinlib.engine.contract import Model
from twinlib.engine.kernel import Data
from twinlib.models.batch import decode
from twinlib.population.fit import Fitter
from twinlib.population.patients import occasion_columns
from twinlib.tables.schemas import TWIN_CHECKS

ROWS = 64  # timelines at once
NEGLIGIBLE = 1e-10  # share of the greatest information below which a direction does not count
MOMENT = 1e-6  # minutes: instants that are the same but for rounding
_TWIN = ["patient_id", "model", "episode", "parameters", "covariance", "draws", "last_reading", "timeline_hash"]


@dataclass(frozen=True)
class Check:
    """readings: how many are new. p_parameters, p_noise: tail probabilities, NaN where nothing can be said. step (p,): how the new readings move
    the posterior mean on the transformed scale; z (p,): the same in SDs of what an unchanged patient's readings do."""

    readings: int
    p_parameters: float
    p_noise: float
    step: np.ndarray
    z: np.ndarray


def law(draws: np.ndarray, laplace: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (p,) and factor L (p, p) of a twin's posterior from its draws (k, p): the shape of the Laplace covariance, which a few draws do not
    give, and the draws' size, which the Laplace covariance misses."""
    root = np.linalg.cholesky(laplace)
    mean = draws.mean(0)
    z = np.linalg.solve(root, (draws - mean).T)
    return mean, root * np.sqrt((z**2).sum() / (len(mean) * (len(draws) - 1)))


def inside(readings: np.ndarray, model: Model) -> np.ndarray:
    """Which readings (slots, signals) lie within the limits of their signals: a censored one has no innovation that is normal."""
    low, high = (np.array([x if x is not None else end for x in ends]) for ends, end in (
        ([s.lower for s in model.signals], -np.inf), ([s.upper for s in model.signals], np.inf),
    ))
    return (readings > low) & (readings < high) | np.isinf(readings)  # what is not finite is for the engine to refuse


def points(mean: np.ndarray, root: np.ndarray) -> np.ndarray:
    """(1 + 2p, p): the mean, and one SD to both sides along every column of `root`."""
    return mean + np.concatenate([np.zeros((1, len(mean))), root.T, -root.T])


def check(innovations: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], mean: np.ndarray, root: np.ndarray) -> Check:
    """innovations: from parameters (k, p) to the innovations of the new readings and their variances (k, n); mean and root: see `law`."""
    p, (e, v) = len(mean), innovations(points(mean, root))
    n = e.shape[1]
    if not n or not (np.isfinite(e).all() and np.isfinite(v).all() and (v > 0).all()):
        return Check(n, np.nan, np.nan, np.full(p, np.nan), np.full(p, np.nan))
    sd, log_v = np.sqrt(v[0]), np.log(v)
    slope = (0.5 * (e[1 : 1 + p] - e[1 + p :]) / sd).T
    r = (e[0] + 0.5 * (e[1 : 1 + p] + e[1 + p :] - 2 * e[0]).sum(0)) / sd  # mean over the posterior, with the curvature
    spread = 0.5 * (log_v[1 : 1 + p] - log_v[1 + p :]).T  # of the log variances
    u, s, _ = np.linalg.svd(slope, full_matrices=False)
    u = u[:, s > NEGLIGIBLE * s[0]] if s[0] > 0 else u[:, :0]
    rest, free = r - u @ (u.T @ r), 1 - (u**2).sum(1)  # what a shift of the mean leaves of r, and its variances
    score = -slope.T @ r + 0.5 * spread.T @ (rest**2 - free)
    values, w = np.linalg.eigh(slope.T @ slope + 0.5 * (spread.T * free**2) @ spread)
    kept = values > NEGLIGIBLE * values[-1]
    values, w = values[kept], w[:, kept]
    along, ways = w.T @ score, root @ w
    moved, q = float((along**2 / (values + values**2)).sum()), len(values)
    step = ways @ (along / (1 + values))  # of the posterior mean, by the update that is exact where all is linear
    z = np.divide(step, np.sqrt(ways**2 @ (values / (1 + values))), out=np.zeros(p), where=np.abs(step) > 0)
    return Check(n, float(chi2.sf(moved, q)), _scatter(rest, n - u.shape[1], free @ spread), step, z)


def _scatter(rest: np.ndarray, degrees: int, spread: np.ndarray) -> float:
    """Tail probability of the sum of squares of `rest`, which has `degrees` of freedom; spread (p,): how the posterior's SDs move the sum, which
    widens its law. NaN where no freedom is left."""
    if degrees <= 0:
        return np.nan
    wider = np.sqrt(1 + spread @ spread / (2 * degrees))
    return float(chi2.sf(max(degrees + (rest @ rest - degrees) / wider, 0.0), degrees))


@dataclass(frozen=True)
class Checker:
    """What a worker needs: the model with tonight's values, its prior, and the rate of false alarms."""

    fitter: Fitter
    false_alarms: float

    def run(self, table: pa.Table) -> list[dict]:
        """Rows of timelines beside last night's twins (`twin_*`) to rows of `twin_checks`; none for those without a new reading. An exception is
        the status of the row that raised it."""
        try:
            return self._run(table)
        except Exception as e:
            if table.num_rows > 1:
                return [row for i in range(table.num_rows) for row in self.run(table.slice(i, 1))]
            return [self._row(table.to_pylist()[0], 0) | {"status": "failed", "reason": f"error:{type(e).__name__}"}]

    def _run(self, table: pa.Table) -> list[dict]:
        kernel, model = self.fitter.kernel, self.fitter.model
        batch, rows, names = decode(table), table.drop_columns(["signals", "inputs"]).to_pylist(), [q.name for q in model.fitted]
        fresh = [batch.instants(model, i) > _minutes(r["start"], r["twin_last_reading"]) + MOMENT for i, r in enumerate(rows)]
        with np.errstate(all="ignore"):  # what is not finite becomes a status
            data = batch.data(model, kernel.nominal_step)
        new = [(~np.isnan(data.row(i))) & f[:, None] for i, f in enumerate(fresh)]
        out = []
        for i, row in enumerate(rows):
            if not new[i].any():
                continue
            made = self._row(row, int(new[i].sum()))
            if row["twin_parameters"] != names:
                out.append(made | {"status": "not_comparable", "reason": "other_parameters"})
                continue
            seen = new[i] & inside(data.row(i), model)
            if not seen.any():
                out.append(made | {"status": "not_comparable", "reason": "censored"})
                continue
            mean, root = law(np.array(row["twin_draws"]).reshape(-1, len(names)), self._covariance(row))
            out.append(made | self._said(self._checked(data.take([i]), seen, mean, root), mean))
        return out

    def _covariance(self, row: dict) -> np.ndarray:
        """Laplace covariance of last night's twin; what differs between episodes is as uncertain as its prior in another one."""
        p, at = len(self.fitter.prior.mean), occasion_columns(self.fitter.model)
        out = np.array(row["twin_covariance"]).reshape(p, p)
        if row["twin_episode"] != row["episode"]:
            out[np.ix_(at, at)] += self.fitter.prior.covariance[np.ix_(at, at)]
        return out

    def _checked(self, data: Data, new: np.ndarray, mean: np.ndarray, root: np.ndarray) -> Check:
        def innovations(theta):
            return tuple(x.reshape(len(theta), *new.shape)[:, new] for x in self.fitter.kernel.innovations(theta, np.zeros(len(theta), int), data))

        with np.errstate(all="ignore"):  # what is not finite becomes a status
            return check(innovations, mean, root)

    def _said(self, found: Check, mean: np.ndarray) -> dict:
        if np.isnan(found.p_parameters):
            return {"status": "failed", "reason": "not_finite"}
        j = int(np.abs(found.z).argmax())
        q = self.fitter.model.fitted[j]
        noise = None if np.isnan(found.p_noise) else found.p_noise
        return {
            "p_parameters": found.p_parameters, "p_noise": noise, "changed": found.p_parameters < self.false_alarms,
            "noisier": None if noise is None else noise < self.false_alarms, "parameter": q.name, "z": float(found.z[j]),
            "before": float(q.natural(mean[j])), "after": float(q.natural(mean[j] + found.step[j])),
        }

    @staticmethod
    def _row(row: dict, count: int) -> dict:
        return {n: row[n] for n in ("patient_id", "model", "episode")} | {
            "status": "checked", "reason": None, "against_episode": row["twin_episode"], "against_timeline_hash": row["twin_timeline_hash"],
            "new_readings": count, "timeline_hash": row["content_hash"],
        }


def _minutes(start: datetime, instant: datetime) -> float:
    return (instant - start).total_seconds() / 60


def checks(timelines: DataFrame, twins: DataFrame, checker: Checker, partitions: int) -> DataFrame:
    """`twin_checks` of timelines that have readings after those of the patient's last twin: of the same episode, or else of the latest one
    before it. Lazy."""
    known = twins.where("status = 'converged' AND last_reading IS NOT NULL").select(*[F.col(c).alias(f"twin_{c}") for c in _TWIN])
    rows = timelines.where("status = 'ready'")
    both = rows.join(known, (rows.patient_id == known.twin_patient_id) & (rows.model == known.twin_model) & (known.twin_episode <= rows.episode))
    newest = F.row_number().over(Window.partitionBy("patient_id", "model", "episode").orderBy(F.desc("twin_episode")))
    both = both.withColumn("k", newest).where("k = 1").drop("k", "twin_patient_id", "twin_model")
    schema, arrow = TWIN_CHECKS.schema, to_arrow_schema(TWIN_CHECKS.schema, timezone="UTC")

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        checker.fitter.kernel.compile()
        for batch in batches:
            table = pa.Table.from_batches([batch])
            for first in range(0, table.num_rows, ROWS):
                found = checker.run(table.slice(first, ROWS))
                if found:
                    yield from pa.Table.from_pylist(found, schema=arrow).to_batches()

    return TWIN_CHECKS.conform(both.repartition(partitions, "patient_id", "episode").mapInArrow(run, schema))
