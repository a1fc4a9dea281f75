"""Learning populations: published estimates, a simulated truth, speed: make bench NAME=population -> out/benchmarks/population.json

The simulated subjects come from the closed form of two compartments (benchmarks/subjects.py), which shares no code with the engine. Wall and CPU
seconds stand side by side, because other work may share the machine: CPU is that of this process and all that it has started. SIZE=small is
for trying it out. Where Rscript is found, with the packages nlme and saemix, benchmarks/population.R fits the same data (else null).
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

from benchmarks import machine, published, subjects
from twinlib.config import EffectConfig, FitConfig, LearnConfig
from twinlib.engine import mode, posterior
from twinlib.engine.kernel import Kernel
from twinlib.engine.normal import Normal
from twinlib.models.batch import decode
from twinlib.models.pharmacokinetics import MODEL, Pharmacokinetics
from twinlib.population import fit, learning, priors, results
from twinlib.population.design import Column
from twinlib.population.patients import with_values
from twinlib.session import session

SMALL = os.environ.get("SIZE") == "small"
REPO = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TWINLIB_DATA") or REPO.parent / "shared" / "data")
TWO = Pharmacokinetics(compartments=2, oral=False, error="proportional")
RICH, SPARSE = 10, 2  # readings of a subject
SUBJECTS, SHARE_SPARSE = (600 if SMALL else 20_000), 0.2
SIZES = (500, 1_000, 2_000) if SMALL else (1_000, 10_000, 100_000)
TASKS = 16


def told(name: str, result: dict) -> dict:
    """`result`, told at once: the whole takes minutes."""
    print(name, json.dumps(result, default=float), file=sys.stderr, flush=True)
    return result


def timed(work):
    """What `work` gives, and its wall and CPU seconds."""
    began, spent = time.perf_counter(), machine.tree_cpu_seconds()
    out = work()
    return out, {"wall_seconds": time.perf_counter() - began, "cpu_seconds": machine.tree_cpu_seconds() - spent}


def theophylline() -> dict:
    (out, _), spent = timed(lambda: published.estimate(MODEL, published.theophylline(DATA), LearnConfig(draws=512)))
    ka, cl, v = np.exp(out.estimate.coefficients[0])
    sd = np.sqrt(np.diag(out.estimate.omega))
    return {
        "ka": ka, "clearance": cl, "volume": v, "sd_ka": sd[0], "sd_clearance": sd[1], "sd_volume": sd[2],
        "error_sd": out.estimate.shared(MODEL)["error_sd"], "minus_two_log_likelihood": -2 * out.log_likelihood,
        "minus_two_log_likelihood_se": 2 * out.log_likelihood_se, "status": out.status, "iterations": len(out.trace), **spent,
        "published": {"ka": 1.59, "clearance": 2.75, "volume": 31.6, "error_sd": 0.696, "minus_two_log_likelihood": 360.7, "source": "saemix"},
    }


def phenobarbital() -> dict:
    """With weight on both parameters and a low Apgar score on volume, as NONMEM was run; NONMEM's objective leaves out log(2 pi) per reading."""
    model = Pharmacokinetics(oral=False, error="proportional")
    weight = [EffectConfig(parameter=n, covariate="body_weight", kind="log", reference=1, fixed=1) for n in ("clearance", "volume")]
    config = LearnConfig(effects=(*weight, EffectConfig(parameter="volume", covariate="apgar", kind="below", reference=5)), start={"clearance": 0.01, "volume": 1.0})
    columns = (Column("body_weight", "log", 1.0), Column("apgar", "below", 5.0))
    (out, _), spent = timed(lambda: published.estimate(model, published.phenobarbital(DATA), config, columns))
    (cl, v), omega = np.exp(out.estimate.coefficients[0]), np.diag(out.estimate.omega)
    return {
        "clearance": cl, "volume": v, "apgar_effect": np.expm1(out.estimate.coefficients[2, 1]), "variance_clearance": omega[0], "variance_volume": omega[1],
        "error_variance": out.estimate.shared(model)["error_cv"] ** 2, "minus_two_log_likelihood": -2 * out.log_likelihood,
        "minus_two_log_likelihood_without_constant": -2 * out.log_likelihood - out.sums["readings"] * np.log(2 * np.pi),
        "status": out.status, "iterations": len(out.trace), **spent,
        "published": {
            "clearance": 0.0046956, "volume": 0.98426, "apgar_effect": 0.1589, "variance_clearance": 0.02935, "variance_volume": 0.02791,
            "error_variance": 0.01324, "minus_two_log_likelihood_without_constant": 586.276, "source": "NONMEM FOCEI",
        },
    }


def usual_fit(hours, y, cv: float, mean, sd) -> np.ndarray:
    """The usual way for one subject: LSODA inside least_squares, log parameters (4,); `sd` of a normal prior about `mean`, infinite for none.

    The error's size grows with the level: its logarithm enters as a residual of its own, so that the objective is the exact one.
    """

    def residual(theta):
        cl, v, q, v2 = np.exp(theta)
        found = solve_ivp(
            lambda t, a: [-(cl + q) / v * a[0] + q / v2 * a[1], q / v * a[0] - q / v2 * a[1]], (0, hours[-1]), [subjects.DOSE, 0.0], "LSODA",
            t_eval=hours, rtol=1e-7, atol=1e-8,
        )
        level = np.maximum(found.y[0] / v, 1e-9) if found.success and found.y.shape[1] == len(hours) else np.full(len(hours), 1e-9)
        return np.concatenate([(y - level) / (cv * level), np.sqrt(2 * (np.log(level) + 30)), (theta - mean) / sd])

    return least_squares(residual, mean, diff_step=1e-4, bounds=(mean - 4, mean + 4), xtol=1e-8, ftol=1e-8).x


def errors_of(learnt, shared: dict) -> dict:
    """Relative errors of medians and SDs between subjects, and of the readings' error."""
    e = learnt.estimate
    found = {f"median_{n}": np.exp(m) for n, m in zip(subjects.MEDIAN, e.coefficients[0])}
    found |= {f"sd_{n}": s for n, s in zip(subjects.SD, np.sqrt(np.diag(e.omega)))} | {"error_cv": shared["error_cv"]}
    truth = {f"median_{n}": v for n, v in subjects.MEDIAN.items()} | {f"sd_{n}": v for n, v in subjects.SD.items()} | {"error_cv": subjects.CV}
    return {n: float(found[n] / truth[n] - 1) for n in truth}


def simulated(spark: SparkSession, kernel: Kernel, folder: Path) -> dict:
    """Subjects with ten readings and others with two, learnt from together; then every subject's posterior under what was learnt."""
    sparse = int(SUBJECTS * SHARE_SPARSE)
    groups = {"rich": subjects.draw(SUBJECTS - sparse, RICH, 11), "sparse": subjects.draw(sparse, SPARSE, 12)}
    rows = pa.concat_tables([subjects.timelines(h, y, name) for name, (_, h, y) in groups.items()])
    frame = stored(spark, rows, folder / "simulated")
    found, spent = timed(lambda: learning.learn_population(spark, frame, kernel, LearnConfig(sample=SUBJECTS), 1, TASKS))
    prior, shared = results.prior(found), found.best.estimate.shared(TWO)
    errors = errors_of(found.best, shared)
    fitter = fit.Fitter(with_values(kernel, prior.values), prior, FitConfig(model=TWO.name, batch_rows=256), 1)
    meter = fit.Meter.on(spark)
    table, fitting = timed(lambda: fit.twin_parameters(fit.fit(frame, fitter, TASKS, meter)).select("patient_id", "parameter", "q05", "q50", "q95").toPandas())
    out, rmse = {}, {}
    for name, (theta, _, _) in groups.items():
        mine = table[table.patient_id.str.startswith(name)]
        index = mine.patient_id.str[len(name) :].astype(int)
        held, off = {}, {}
        for j, parameter in enumerate(subjects.MEDIAN):
            p = mine.parameter == parameter
            truth = theta[index[p], j]
            held[parameter] = float(((np.log(mine.q05[p]) <= truth) & (truth <= np.log(mine.q95[p]))).mean())
            off[parameter] = float(np.sqrt(((np.log(mine.q50[p]) - truth) ** 2).mean()))
        out |= {f"individual_coverage_90_{name}": float(np.mean(list(held.values()))), f"individual_coverage_90_{name}_by_parameter": held}
        out[f"subjects_{name}"], rmse[name] = int(mine.patient_id.nunique()), off
    return {
        "subjects": SUBJECTS, "status": found.best.status, "iterations": len(found.best.trace), "learning": spent, "fitting": fitting,
        "fitting_engine_seconds": meter.engine.value, "relative_errors": errors,
        "relative_standard_errors": relative_standard_errors(found.best), "log_rmse_by_parameter": rmse, **out,
        "pooling": pooling(kernel, prior, groups["sparse"], rows.slice(SUBJECTS - sparse)),
    }


def relative_standard_errors(learnt) -> dict:
    """What sampling of subjects alone lets expect of `errors_of`, in its order."""
    omega = np.diag(learnt.estimate.omega)
    return dict(zip(
        [f"median_{n}" for n in subjects.MEDIAN] + [f"sd_{n}" for n in subjects.SD] + ["error_cv"],
        [*map(float, learnt.errors[:4]), *map(float, learnt.errors[4:8] / (2 * omega)), float(learnt.errors[8])],
    ))


def pooling(kernel: Kernel, prior: priors.Prior, group, rows: pa.Table) -> dict:
    """Root mean square errors of log parameters of subjects with two readings: under the learnt prior, under the model's broad one, and by SciPy
    without any; and what a fit costs, against SciPy's under the same learnt prior."""
    theta, hours, y = group
    count = min(len(theta), 40 if SMALL else 300)
    own = with_values(kernel, prior.values)
    data = decode(rows.slice(0, count)).data(TWO, own.nominal_step)
    cv, sd, start = prior.values["error_cv"], prior.sd, TWO.prior_mean
    rmse = lambda x: float(np.sqrt(((x - theta[: len(x)]) ** 2).mean()))  # noqa: E731

    def modes(mean, covariance):
        law = Normal(np.tile(mean, (count, 1)), covariance)
        began = time.thread_time()
        found = mode.find(own, data, law, law.mean)
        return law, found, (time.thread_time() - began) / count

    modes(prior.mean, prior.covariance)
    law, pooled, seconds = modes(prior.mean, prior.covariance)
    began, keys = time.thread_time(), [(str(i),) for i in range(count)]
    drawn = posterior.sample(own, data, law, pooled.theta, posterior.covariance(pooled.hessian), keys, 1, 512)
    sampling = (time.thread_time() - began) / count
    pooled_mean = np.einsum("nk,nkp->np", drawn.weights, drawn.draws)
    broad = modes(start, np.diag(TWO.prior_sd**2))[1].theta
    began = time.thread_time()
    usual = np.array([usual_fit(hours[i], y[i], cv, prior.mean, sd) for i in range(min(count, 40))])
    usual_seconds = (time.thread_time() - began) / len(usual)
    alone = np.array([usual_fit(hours[i], y[i], cv, start, np.full(4, np.inf)) for i in range(count)])
    off = np.abs(usual - pooled.theta[: len(usual)]) / np.sqrt(np.diagonal(np.linalg.inv(pooled.hessian[: len(usual)]), axis1=1, axis2=2))
    return {
        "subjects": count, "log_rmse_pooled": rmse(pooled_mean), "log_rmse_broad_prior": rmse(broad), "log_rmse_scipy_without_prior": rmse(alone),
        "ratio_to_broad_prior": rmse(pooled_mean) / rmse(broad), "ratio_to_scipy_without_prior": rmse(pooled_mean) / rmse(alone),
        "scipy_seconds_per_mode": usual_seconds, "seconds_per_mode": seconds, "seconds_per_mode_and_512_draws": seconds + sampling,
        "speedup_of_modes_vs_scipy": usual_seconds / seconds, "speedup_of_posteriors_vs_scipy_modes": usual_seconds / (seconds + sampling),
        "modes_differ_from_scipy_by_posterior_sd_95": float(np.quantile(off.max(1), 0.95)),
    }


def stored(spark: SparkSession, rows: pa.Table, path: Path):
    """The rows as a frame over a file, as the fuse stage leaves them."""
    path.mkdir()
    pq.write_table(rows, path / "part.parquet", row_group_size=4096)
    return spark.read.parquet(str(path))


def scaling(spark: SparkSession, kernel: Kernel, folder: Path) -> dict:
    """EM on all of more and more subjects; every run converges by the same rule."""
    out: dict = {}
    for n in SIZES:
        _, hours, y = subjects.draw(n, RICH, 20)
        frame = stored(spark, subjects.timelines(hours, y), folder / f"scaling_{n}")
        found, spent = timed(lambda: learning.learn_population(spark, frame, kernel, LearnConfig(sample=n), 1, TASKS))  # noqa: B023
        error = errors_of(found.best, found.best.estimate.shared(TWO))
        passes = sum(i.share == 1.0 for i in found.best.trace)
        out[str(n)] = told(f"{n} subjects", spent | {
            "status": found.best.status, "iterations": len(found.best.trace), "iterations_on_all": passes, "max_relative_error": max(map(abs, error.values())),
        })
    return out


def usual_packages(folder: Path) -> dict | None:
    """nlme and saemix on theophylline and on simulated subjects, by R; null where there is none."""
    if shutil.which("Rscript") is None:
        return None
    n = 100 if SMALL else 1_000
    _, hours, y = subjects.draw(n, RICH, 20)
    with open(folder / "simulated.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "time", "dose", "conc"])
        out.writerows([i, f"{t:.6f}", subjects.DOSE, f"{v:.6f}"] for i in range(n) for t, v in zip(hours[i], y[i]))
    command = ["Rscript", str(REPO / "benchmarks" / "population.R"), str(DATA / "pkpd" / "Theoph.csv"), str(folder / "simulated.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-2000:]}


def measure() -> dict:
    before = os.getloadavg()[0]
    spark = session("population", {"spark.master": "local[2]", "spark.sql.shuffle.partitions": 4, "spark.driver.memory": "4g"})
    spark.sparkContext.setLogLevel("ERROR")
    kernel = Kernel(TWO)
    compiling = kernel.compile()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, hours, y = subjects.draw(200, RICH, 1)
        learning.learn_population(spark, stored(spark, subjects.timelines(hours, y), folder / "warm"), kernel, LearnConfig(), 1, TASKS)
        drugs = told("published", {"theophylline": theophylline(), "phenobarbital": phenobarbital()})
        truth, speed, usual = told("simulated", simulated(spark, kernel, folder)), scaling(spark, kernel, folder), usual_packages(folder)
    spark.stop()
    small, large = str(SIZES[0]), str(SIZES[-1])
    per = lambda n, what: speed[n][what] / int(n)  # noqa: E731
    return drugs | {
        "simulated_population_max_relative_error": max(map(abs, truth["relative_errors"].values())),
        "individual_coverage_90": (truth["individual_coverage_90_rich"] * truth["subjects_rich"] + truth["individual_coverage_90_sparse"] * truth["subjects_sparse"])
        / (truth["subjects_rich"] + truth["subjects_sparse"]),
        "individual_coverage_90_sparse": truth["individual_coverage_90_sparse"],
        "sparse_rmse_ratio_pooled_to_unpooled": max(truth["pooling"]["ratio_to_broad_prior"], truth["pooling"]["ratio_to_scipy_without_prior"]),
        "seconds_by_subjects": {n: s["wall_seconds"] for n, s in speed.items()},
        "cpu_seconds_by_subjects": {n: s["cpu_seconds"] for n, s in speed.items()},
        "time_ratio_per_subject_100k_to_1k": per(large, "wall_seconds") / per(small, "wall_seconds"),
        "cpu_ratio_per_subject_100k_to_1k": per(large, "cpu_seconds") / per(small, "cpu_seconds"),
        "speedup_of_modes_vs_scipy": truth["pooling"]["speedup_of_modes_vs_scipy"],
        "r": usual, "simulated": truth, "scaling": speed, "compile_seconds": compiling, "sizes": list(SIZES),
        "machine": {"cores": os.cpu_count(), "load_before": before, "load_after": os.getloadavg()[0]},
    }


def main() -> None:
    result, spent = timed(measure)
    text = json.dumps(result | spent, indent=1, default=float)
    out = REPO / "out" / "benchmarks" / "population.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
