"""Abduction, action, prediction for whole cohorts: pure functions on batches, and the Spark stage that runs them.

Abduction: for every posterior draw the smoother finds the flux that explains the readings. Action: the scenario edits the inputs.
Prediction: the same draws with the same flux run under the factual and the edited inputs; the difference of the two replays is
added to the reading, so whatever the twin could not explain stays in both arms, and the arms differ by the intervention alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema

from twinlib.engine.kernel import Data, Kernel
from twinlib.models.batch import Batch, decode
from twinlib.tables.schemas import OUTCOMES as OUTCOMES_TABLE
from twinlib.whatif.outcomes import OUTCOMES, cgm_outcomes, contrast, wear_fraction
from twinlib.whatif.scenarios import Scenario, applicable, apply

FLOOR = 20.0  # mg/dL; a counterfactual is cut here, where the dynamics no longer hold


@dataclass(frozen=True)
class Replay:
    """One patient-episode under its posterior draws: abducted noise, and the factual replay (draws, slots) in the signal's unit."""

    kernel: Kernel
    batch: Batch
    data: Data
    theta: np.ndarray
    noise: np.ndarray
    start: np.ndarray
    factual: np.ndarray

    @classmethod
    def abduct(cls, kernel: Kernel, batch: Batch, draws: np.ndarray) -> Replay:
        """Abduct the noise of a batch of one row under `draws` (draws, fitted) on the transformed scale."""
        data = batch.data(kernel.model, kernel.nominal_step)
        noise, start = kernel.smooth(draws, np.zeros(len(draws), int), data)
        replay = cls(kernel, batch, data, draws, noise, start, np.empty(0))
        return replace(replay, factual=replay._run(data))

    def _run(self, data: Data) -> np.ndarray:
        signals = self.kernel.simulate(self.theta, np.zeros(len(self.theta), int), data, self.noise, self.start)
        return signals[:, 0].reshape(len(self.theta), -1)

    @property
    def readings(self) -> np.ndarray:
        """(slots,) readings of the model's first signal."""
        return self.data.readings[:, 0]

    def effect(self, scenario: Scenario) -> np.ndarray:
        """(draws, slots) counterfactual minus factual signal; exactly zero where the scenario changes nothing."""
        edited = apply(scenario, self.batch.inputs[0], minutes=float(self.batch.minutes[0]))
        arm = self.batch.with_inputs((edited,)).data(self.kernel.model, self.kernel.nominal_step, self.data.constants)
        return self._run(arm) - self.factual

    def counterfactual(self, scenario: Scenario) -> np.ndarray:
        """(draws, slots) readings under the scenario, NaN where there was no reading."""
        effect = self.effect(scenario)
        return np.where(effect == 0, self.readings, np.maximum(self.readings + effect, np.minimum(self.readings, FLOOR)))


@dataclass(frozen=True)
class Simulator:
    """Everything a worker needs to simulate a batch."""

    kernel: Kernel
    scenarios: tuple[Scenario, ...]
    minimum_wear: float

    @property
    def hash(self) -> str:
        """Hash of scenarios, settings and outcome definitions: with the twin's own it decides whether stored outcomes still hold."""
        text = repr([(s.name, s.hash) for s in self.scenarios]) + repr((self.minimum_wear, self.kernel.hash, FLOOR))
        text += repr([(o.name, o.unit, o.better, o.meaning) for o in OUTCOMES])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def simulate(self, batch: Batch, row: int, draws: np.ndarray) -> list[dict]:
        """Outcome rows (without identity) of one patient-episode, all scenarios and outcomes."""
        batch = batch.row(row)
        readings = batch.signals[0][self.kernel.model.signals[0].name].values
        if wear_fraction(readings) < self.minimum_wear:
            return [self._missing(s, "insufficient_data", "short_wear") for s in self.scenarios]
        factual = cgm_outcomes(readings)
        replay = Replay.abduct(self.kernel, batch, draws)
        out = []
        for scenario in self.scenarios:
            reason = applicable(scenario, batch.inputs[0])
            if reason is not None:
                out.append(self._missing(scenario, "not_applicable", reason, factual))
                continue
            c = contrast(factual, cgm_outcomes(replay.counterfactual(scenario)))
            out.append([
                {
                    "scenario": scenario.name, "outcome": o.name, "unit": o.unit, "status": "ok", "reason": None,
                    "factual": factual[j], "counterfactual_mean": c.counterfactual_mean[j],
                    "counterfactual_q05": c.counterfactual_q05[j], "counterfactual_q95": c.counterfactual_q95[j],
                    "effect_mean": c.effect_mean[j], "effect_q05": c.effect_q05[j], "effect_q95": c.effect_q95[j],
                    "probability_of_benefit": c.probability_of_benefit[j], "effect_draws": c.effects[:, j].tolist(), "draws": len(draws),
                }
                if np.isfinite(c.effect_mean[j])
                else self._missing(scenario, "insufficient_data", "undefined", factual)[j]
                for j, o in enumerate(OUTCOMES)
            ])
        return out

    def _missing(self, scenario: Scenario, status: str, reason: str, factual: np.ndarray | None = None) -> list[dict]:
        known = [None if factual is None or np.isnan(f) else f for f in (factual if factual is not None else [None] * len(OUTCOMES))]
        return [
            {"scenario": scenario.name, "outcome": o.name, "unit": o.unit, "status": status, "reason": reason, "factual": f}
            for o, f in zip(OUTCOMES, known)
        ]

    def run(self, table: pa.Table) -> list[dict]:
        """Rows of timelines joined with their twin (`twin_status`, `draws`, `work_hash`) to rows of `outcomes`."""
        out = []
        for i in range(table.num_rows):
            row = table.slice(i, 1)
            value = lambda name: row.column(name)[0].as_py()  # noqa: E731,B023
            try:
                if value("twin_status") != "converged":
                    found = [self._missing(s, "no_twin", value("twin_reason") or value("twin_status")) for s in self.scenarios]
                else:
                    draws = np.array(value("draws")).reshape(-1, len(self.kernel.model.fitted))
                    found = self.simulate(decode(row), 0, draws)
            except Exception as e:
                found = [self._missing(s, "no_twin", f"error:{type(e).__name__}") for s in self.scenarios]
            identity = {n: value(n) for n in ("patient_id", "model", "episode", "work_hash")}
            out += [outcome | identity for scenario in found for outcome in scenario]
        return out


def simulate(rows: DataFrame, simulator: Simulator, partitions: int) -> DataFrame:
    """All scenarios for all rows (timelines joined with their twin): a frame that conforms to `outcomes`. Lazy."""
    arrow = to_arrow_schema(OUTCOMES_TABLE.schema, timezone="UTC")

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            table = pa.Table.from_batches([batch])
            for first in range(0, table.num_rows, 16):
                yield from pa.Table.from_pylist(simulator.run(table.slice(first, 16)), schema=arrow).to_batches()

    return rows.repartition(partitions, "patient_id", "episode").mapInArrow(run, OUTCOMES_TABLE.schema)
