"""Published data sets as batches, and EM on them in one process."""

import csv
from pathlib import Path

import numpy as np

from twinlib.config import LearnConfig
from twinlib.engine.kernel import Kernel
from twinlib.models.batch import Batch, Series
from twinlib.models.timeline import Events
from twinlib.population import learn
from twinlib.population.design import design
from twinlib.population.expectation import Settings, expect
from twinlib.population.patients import Patients
from twinlib.population.settings import belief, start


def read(path: Path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def grouped(rows: list[dict], key: str) -> dict[str, list[dict]]:
    out: dict[str, list[dict]] = {}
    for r in rows:
        out.setdefault(r[key], []).append(r)
    return out


def batch(signal: str, subjects: dict[str, tuple], minutes_per_unit: float = 60.0) -> Batch:
    """subjects: id -> (times, values, {agent: (times, amounts, durations)}, covariates), times in hours (or another unit)."""
    rows = []
    for who, (times, values, events, covariates) in subjects.items():
        inputs = {a: Events.of(np.array(t) * minutes_per_unit, x, np.asarray(d, float) * minutes_per_unit) for a, (t, x, d) in events.items()}
        rows.append(((who, "all"), {signal: Series(np.array(times, float) * minutes_per_unit, np.array(values, float))}, inputs, covariates))
    ids, series, inputs, covariates = zip(*rows)
    minutes = np.array([next(iter(s.values())).minutes[-1] + 1 for s in series])
    return Batch(ids, minutes, series, inputs, covariates, np.zeros(len(rows)))


def estimate(model, cohort: Batch, config: LearnConfig, columns=(), seed=1, kernel=None):
    """EM on a batch with one episode per patient: what was learnt and the last E-step."""
    kernel = kernel or Kernel(model)
    patients = Patients(cohort.data(model, kernel.nominal_step), np.arange(len(cohort) + 1))
    z, ids = design(columns, cohort.covariates), [i[0] for i in cohort.ids]
    first, structure = start(config, model, tuple(columns), False)

    def step(current, information, share):
        return expect(kernel, patients, ids, z, current, structure, Settings(config.draws, seed, information)).sums.sum(0)

    learnt = learn.run(step, first, structure, config.iterations, config.tolerance, belief=belief(config, first))
    return learnt, expect(kernel, patients, ids, z, learnt.estimate, structure, Settings(config.draws, seed))


def theophylline(folder: Path) -> Batch:
    subjects = grouped(read(folder / "pkpd" / "Theoph.csv"), "Subject")
    return batch("drug_concentration", {
        s: ([float(r["Time"]) for r in rows], [float(r["conc"]) for r in rows], {"drug_oral": ([0.0], [float(rows[0]["Dose"]) * float(rows[0]["Wt"])], 0.0)}, {})
        for s, rows in subjects.items()
    })


def phenobarbital(folder: Path) -> Batch:
    out = {}
    for s, rows in grouped(read(folder / "pkpd" / "Phenobarb.csv"), "Subject").items():
        seen, given = [r for r in rows if r["conc"]], [r for r in rows if r["dose"]]
        covariates = {"body_weight": float(rows[0]["Wt"]), "apgar": float(rows[0]["Apgar"])}
        doses = ([float(r["time"]) for r in given], [float(r["dose"]) for r in given], 0.0)
        out[s] = ([float(r["time"]) for r in seen], [float(r["conc"]) for r in seen], {"drug_venous": doses}, covariates)
    return batch("drug_concentration", out)


def indomethacin(folder: Path, dose: float = 25.0) -> Batch:
    subjects = grouped(read(folder / "pkpd" / "Indometh.csv"), "Subject")
    return batch("drug_concentration", {
        s: ([float(r["time"]) for r in rows], [float(r["conc"]) for r in rows], {"drug_venous": ([0.0], [dose], 0.0)}, {}) for s, rows in subjects.items()
    })


def cirrhosis(folder: Path) -> Batch:
    subjects = grouped(read(folder / "pbcseq" / "pbcseq.csv"), "id")
    return batch("bilirubin", {s: ([float(r["day"]) / 365.25 for r in rows], [float(r["bili"]) for r in rows], {}, {}) for s, rows in subjects.items()}, 365.25 * 1440)
