"""The engine against its peers and against its own claims: make bench NAME=engine -> out/benchmarks/engine.json

All figures come from one run on one core (CPU time of the thread); those about Spark use two. SIZE=small is for trying it out.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import chisquare

from benchmarks import cohorts, machine, open_loop, simglucose
from twinlib.engine import mode, posterior
from twinlib.engine.kernel import Kernel
from twinlib.engine.normal import Normal
from twinlib.models import find

SMALL = os.environ.get("SIZE") == "small"
REPO = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("TWINLIB_DATA") or REPO.parent / "shared" / "data")
COMPILE = """
import json, time
import numpy as np
from twinlib.engine.kernel import Kernel
from twinlib.models import find
kernel = Kernel(find("{model}"))
print(json.dumps(kernel.compile()))
"""


def cpu(function, repeats: int = 3):
    """The result, and the least CPU seconds of this thread over a few runs."""
    best = np.inf
    for _ in range(repeats):
        began = time.thread_time()
        result = function()
        best = min(best, time.thread_time() - began)
    return result, best


def prior_of(model, rows: int) -> Normal:
    return Normal.independent(model.prior_mean, model.prior_sd, rows)


def open_loop_problem() -> dict:
    """MAP fits of the nine-state problem against SciPy, one patient per call; errors against DOP853 fits in posterior SDs."""
    model, n, usual, exact = open_loop.MODEL, 256 if SMALL else 2048, 2 if SMALL else 8, 2 if SMALL else 8
    who, kernel = open_loop.patients(n, 5), Kernel(open_loop.MODEL)
    kernel.compile()
    times = []
    for i in range(usual):
        began = time.thread_time()
        open_loop.usual_fit(who, i)
        times.append(time.thread_time() - began)
    scipy_seconds = float(np.median(times))
    references = [open_loop.exact_fit(who, i) for i in range(exact)]
    out = {"scipy_lsoda_seconds_per_fit": scipy_seconds}
    prior = prior_of(model, n)
    for step, name in ((1.0, ""), (2.5, "_long_step"), (5.0, "_longest_step")):
        data = open_loop.data(who, step)
        found, seconds = cpu(lambda: mode.find(kernel, replace(data), prior, prior.mean), 5)  # noqa: B023  (a copy: nothing worked out before)
        assert (found.status == "converged").all()
        error = max(float((abs(found.theta[i] - x) / np.sqrt(np.diag(c))).max()) for i, (x, c) in enumerate(references))
        out |= {
            f"open_loop_microseconds_per_fit{name}": 1e6 * seconds / n, f"open_loop_speedup_vs_scipy_lsoda{name}": scipy_seconds / (seconds / n),
            f"open_loop_max_error_in_posterior_sd{name}": error,
        }
    data = open_loop.data(who, 1.0)
    _, seconds = cpu(lambda: kernel.derivatives(prior.mean, np.arange(n), data), 7)
    work = machine.operations(kernel.source, "advance_sensitive") * len(data.lengths)
    peak = machine.peak_gflops()
    return out | {"gflops": work / seconds / 1e9, "peak_gflops": peak, "peak_share": work / seconds / 1e9 / peak}


def full_posterior(kernel: Kernel, data, draws: int, seed: int = 1):
    """Mode and posterior of every row as the fit stage does them; CPU seconds for all."""
    prior, keys = prior_of(kernel.model, len(data)), [(str(i), "") for i in range(len(data))]
    began = time.thread_time()
    found = mode.find_from(kernel, data, prior, [prior.mean], 60)
    cov = posterior.covariance(found.hessian)
    drawn = posterior.sample(kernel, data, prior, found.theta, np.where(np.isfinite(cov), cov, np.diag(prior.sd**2)), keys, seed, draws)
    kept = posterior.resample(drawn, keys, seed, 128)
    return found, drawn, kept, time.thread_time() - began


def stochastic_twin() -> dict:
    """The twin with process noise on one day: speed, calibration of the posterior over patients drawn from the prior."""
    model, n, sets = find("glucose_insulin"), 128 if SMALL else 2000, 1 if SMALL else 5
    kernel, counts, covered, runs = Kernel(model), [], [], []
    kernel.compile()
    for k in range(sets):
        truth = model.prior_mean + model.prior_sd * np.random.default_rng(21 + 10 * k).standard_normal((n, len(model.fitted)))
        data = cohorts.data(cohorts.day(model.natural(truth), 22 + 10 * k), kernel.nominal_step)
        found, drawn, kept, _ = full_posterior(kernel, data, 512)
        # 127 draws: ranks 0..127 in 16 bins of 8
        ranks = (kept[:, :127] < truth[:, None]).sum(1) // 8
        counts.append([np.bincount(r, minlength=16) for r in ranks.T])
        low, high = posterior.quantiles(drawn.draws.swapaxes(1, 2), drawn.weights[:, None], [0.05, 0.95])
        covered.append(((truth >= low) & (truth <= high)).mean(0))
        runs.append((found.status == "converged", drawn.effective_draws, drawn.pareto_k))
    p, covered = chisquare(np.sum(counts, 0), axis=1).pvalue, np.mean(covered, 0)
    converged, effective, pareto = map(np.concatenate, zip(*runs))
    batch = data.take(np.arange(64))
    seconds = min(full_posterior(kernel, batch, 512)[3] for _ in range(5)) / 64
    plain = min(full_posterior(kernel, batch, 128)[3] for _ in range(5)) / 64
    names = [q.name for q in model.fitted]
    return {
        "stochastic_posterior_ms_per_patient_day": 1e3 * seconds, "stochastic_posterior_ms_per_patient_day_128_evaluations": 1e3 * plain,
        "stochastic_converged_share": float(converged.mean()), "sbc_patients": sets * n, "sbc_min_p": float(p.min()),
        "sbc_p": dict(zip(names, map(float, p))), "sbc_min_p_of_each_set": [float(chisquare(c, axis=1).pvalue.min()) for c in counts],
        "coverage_90_min": float(covered.min()), "coverage_90_max": float(covered.max()),
        "coverage_90": dict(zip(names, map(float, covered))), "effective_draws_median": float(np.median(effective)),
        "pareto_k_below_0_7": float((pareto < 0.7).mean()),
    }


def two_compartments() -> dict:
    """The 21-parameter twin on days of another simulator's patients."""
    model = find("glucose_two_compartment")
    folder = DATA / "simglucose_days"
    if not folder.is_dir():
        return {"two_compartment_posterior_ms_per_patient_day": None}
    kernel = Kernel(model)
    kernel.compile()
    sets = simglucose.baseline_days(folder, model, kernel.nominal_step)
    full_posterior(kernel, sets[0].take(np.arange(2)), 512)
    runs = [full_posterior(kernel, data, 512) for data in sets]
    days = sum(len(d) for d in sets)
    return {
        "two_compartment_posterior_ms_per_patient_day": 1e3 * sum(r[3] for r in runs) / days,
        "two_compartment_converged_share": float(np.mean(np.concatenate([r[0].status for r in runs]) == "converged")),
        "two_compartment_pareto_k_below_0_7": float(np.mean(np.concatenate([r[1].pareto_k for r in runs]) < 0.7)),
        "two_compartment_effective_draws_median": float(np.median(np.concatenate([r[1].effective_draws for r in runs]))),
    }


def peer(own_seconds: float) -> dict:
    """ReplayBG's default MAP of one day of a virtual adult, where its environment is named in $TWINLIB_REPLAYBG."""
    python, folder = os.environ.get("TWINLIB_REPLAYBG"), DATA / "simglucose_days"
    if not python or not folder.is_dir():
        return {"speedup_vs_replaybg_map": None, "replaybg_map_cpu_seconds": None}
    weight, rows = simglucose.patients(folder)["adult#001"]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "day.csv"
        rows[rows["scenario"] == "baseline"].iloc[:288].to_csv(path, index=False)
        basal = 1000.0 * float(rows["basal"].iloc[0]) / weight
        done = subprocess.run(
            [python, str(REPO / "benchmarks" / "replay_bg.py"), str(path), str(weight), str(basal)], capture_output=True, text=True, check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "replaybg_version": found["version"], "replaybg_map_cpu_seconds": found["cpu_seconds"],
        "speedup_vs_replaybg_map": found["cpu_seconds"] / own_seconds,
    }


def compilation() -> dict:
    """Seconds of compiling a model in a fresh process without and with the disk cache."""
    out = {}
    for model, name in (("glucose_insulin", ""), ("glucose_two_compartment", "_two_compartment")):
        with tempfile.TemporaryDirectory() as cache:
            env = os.environ | {"TWINLIB_KERNELS": f"{cache}/kernels", "NUMBA_CACHE_DIR": f"{cache}/numba"}
            for state in ("cold", "cached"):
                run = subprocess.run([sys.executable, "-c", COMPILE.format(model=model)], capture_output=True, text=True, check=True, env=env, cwd=REPO)
                out[f"compile_seconds_{state}{name}"] = json.loads(run.stdout)
    return out


def worker_mb(spark) -> float:
    """The most memory that any of the Python workers of Arrow functions, which stay between jobs, has held."""
    import pyarrow as pa

    def held(batches):
        for _ in batches:
            yield pa.RecordBatch.from_pydict({"mb": [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]})

    return max(r.mb for r in spark.range(0, 8, 1, 8).mapInArrow(held, "mb double").collect())


def in_spark() -> dict:
    """T1D-UOM, one-day episodes through the main job: what converges, and the engine's share of the fit stage on two cores."""
    import yaml
    from pyspark.sql import functions as F

    from twinlib.population import fit as fitting
    from twinlib.stages import Night, Plan
    from twinlib.tables import schemas

    if not (DATA / "t1d_uom_core").is_dir():
        return {"real_data_converged_share": None, "fit_stage_kernel_share": None}
    with tempfile.TemporaryDirectory() as scratch:
        config = yaml.safe_load((REPO / "conf" / "t1d_uom.yaml").read_text())
        config |= {"output": f"{scratch}/out", "pseudonym_key": {"file": str(REPO / "conf" / "demo.key")}, "spark": {"spark.master": "local[2]"}}
        config["sources"] = [{"mapping": str(REPO / "conf" / "mappings" / "t1d_uom.yaml"), "root": str(DATA / "t1d_uom_core")}]
        config["episodes"] = {"days": 1, "minimum_readings": 48, "minimum_wear_hours": 12}
        config["simulate"]["scenarios"] = str(REPO / "conf" / "scenarios.yaml")
        path = Path(scratch) / "run.yaml"
        path.write_text(yaml.safe_dump(config))
        night = Night(Plan.of(path))
        night.ingest(), night.fuse(), night.fit()
        counts = {r[0]: r[1] for r in night.storage.read(schemas.TWINS).where("status != 'insufficient_data'").groupBy("status").count().collect()}
        reasons = {r[0]: r[1] for r in night.storage.read(schemas.TWINS).where("status NOT IN ('converged', 'insufficient_data')").groupBy("reason").count().collect()}
        ready = night.storage.read(schemas.TIMELINES).where(F.col("status") == "ready").persist()
        rows = ready.count()
        meter = fitting.Meter.on(night.spark)
        began = time.perf_counter()
        fitting.fit(ready, night.plan.fitter, night.partitions, meter).write.format("noop").mode("overwrite").save()
        wall = time.perf_counter() - began
        memory = {rows: worker_mb(night.spark)}
        copies = ready.crossJoin(night.spark.range(8)).select(ready.columns)
        fitting.fit(copies, night.plan.fitter, night.partitions, fitting.Meter.on(night.spark)).write.format("noop").mode("overwrite").save()
        memory[8 * rows] = worker_mb(night.spark)
        night.spark.stop()
    total = sum(counts.values())
    return {
        "real_data_episodes": total, "real_data_converged_share": counts.get("converged", 0) / total, "real_data_reasons": reasons,
        "fit_stage_kernel_share": meter.engine.value / (2 * wall), "fit_stage_episodes_per_second": rows / wall, "fit_stage_seconds": wall,
        "peak_worker_mb_by_episodes": memory,
    }


def main() -> None:
    out = REPO / "out" / "benchmarks" / "engine.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    result: dict = {"size": "small" if SMALL else "full", "cores": os.cpu_count()}
    for section in (open_loop_problem, stochastic_twin, two_compartments, compilation, in_spark):
        result |= section()
        print(f"{section.__name__} done", file=sys.stderr)
    result |= peer(result["stochastic_posterior_ms_per_patient_day"] / 1e3)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
