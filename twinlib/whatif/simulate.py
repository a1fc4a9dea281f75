"""All scenarios and outcomes of a patient-episode as rows, and the Spark stage that makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema

from twinlib.engine.kernel import Kernel
from twinlib.models.batch import Batch, decode
from twinlib.tables.schemas import OUTCOMES as OUTCOMES_TABLE
from twinlib.whatif import cgm
from twinlib.whatif.extrapolation import extrapolation
from twinlib.whatif.outcomes import Outcome, contrast, evaluate, wear_fraction
from twinlib.whatif.replay import Replay
from twinlib.whatif.scenarios import Scenario, applicable

_SEMANTICS = 1  # raise when the same settings come to mean another result


@dataclass(frozen=True)
class Simulator:
    """Everything a worker needs to simulate a batch; pickles small. horizon and grid in minutes (see config.SimulateConfig)."""

    kernel: Kernel
    scenarios: tuple[Scenario, ...]
    minimum_wear: float = 0.7
    outcomes: tuple[Outcome, ...] = cgm.OUTCOMES
    mode: Literal["counterfactual", "new_day", "forecast"] = "counterfactual"
    horizon: float = 1440.0
    grid: float | None = None
    seed: int = 0

    @property
    def hash(self) -> str:
        """Hash of scenarios, settings and outcome definitions: with the twin's own it decides whether stored outcomes still hold."""
        settings = (_SEMANTICS, self.minimum_wear, self.kernel.hash, self.mode, self.horizon, self.grid, self.seed)
        text = repr([(s.name, s.hash) for s in self.scenarios]) + repr(settings) + repr([o.version for o in self.outcomes])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def replay(self, batch: Batch, draws: np.ndarray) -> Replay:
        """The world of a batch of one row, in the simulator's mode."""
        if self.mode == "forecast":
            return Replay.forecast(self.kernel, batch, draws, self.horizon, self.seed, self.grid)
        return (Replay.new_day if self.mode == "new_day" else Replay.abduct)(self.kernel, batch, draws, self.seed, self.grid)

    def simulate(self, batch: Batch, row: int, draws: np.ndarray) -> list[list[dict]]:
        """Outcome rows (without identity) of one patient-episode, by scenario."""
        batch = batch.row(row)
        if self.mode == "counterfactual" and self.grid is None:
            readings = batch.signals[0][self.kernel.model.signals[0].name].values
            if wear_fraction(readings) < self.minimum_wear:
                return [self._missing(s, "insufficient_data", "short_wear") for s in self.scenarios]
        replay = self.replay(batch, draws)
        factual = evaluate(self.outcomes, replay.factual_trace())
        factual = factual[0] if len(factual) == 1 else factual
        return [self._scenario(replay, s, factual, len(draws)) for s in self.scenarios]

    def _scenario(self, replay: Replay, scenario: Scenario, factual: np.ndarray, draws: int) -> list[dict]:
        """Rows of one scenario; factual (outcomes,) or (draws, outcomes)."""
        level = factual if factual.ndim == 1 else factual.mean(axis=0)
        reason = applicable(scenario, replay.future, replay.scene)
        if reason is not None:
            return self._missing(scenario, "not_applicable", reason, level)
        arm = replay.arm(scenario)
        values = evaluate(self.outcomes, replay.counterfactual_trace(arm))
        values = np.broadcast_to(values, (draws, len(self.outcomes)))
        c = contrast(factual, values, np.array([o.better for o in self.outcomes]))
        beyond = extrapolation(replay, scenario, arm)
        undefined = self._missing(scenario, "insufficient_data", "undefined", level)
        return [
            {
                "scenario": scenario.name, "outcome": o.name, "unit": o.unit, "mode": self.mode, "status": "ok", "reason": None,
                "factual": level[j], "counterfactual_mean": c.counterfactual_mean[j],
                "counterfactual_q05": c.counterfactual_q05[j], "counterfactual_q95": c.counterfactual_q95[j],
                "effect_mean": c.effect_mean[j], "effect_q05": c.effect_q05[j], "effect_q95": c.effect_q95[j],
                "probability_of_benefit": _known(c.probability_of_benefit[j]), "probability_of_harm": _known(c.probability_of_harm[j]),
                "extrapolation": beyond, "effect_draws": c.effects[:, j].tolist(),
                "factual_draws": None if factual.ndim == 1 else factual[:, j].tolist(), "draws": draws,
            }
            if np.isfinite(c.effect_mean[j])
            else undefined[j]
            for j, o in enumerate(self.outcomes)
        ]

    def _missing(self, scenario: Scenario, status: str, reason: str, factual: np.ndarray | None = None) -> list[dict]:
        known = [None] * len(self.outcomes) if factual is None else [_known(f) for f in factual]
        return [
            {"scenario": scenario.name, "outcome": o.name, "unit": o.unit, "mode": self.mode, "status": status, "reason": reason, "factual": f}
            for o, f in zip(self.outcomes, known)
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


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def simulate(rows: DataFrame, simulator: Simulator, partitions: int) -> DataFrame:
    """All scenarios for all rows (timelines joined with their twin): a frame that conforms to `outcomes`. Lazy."""
    arrow = to_arrow_schema(OUTCOMES_TABLE.schema, timezone="UTC")

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        simulator.kernel.compile()
        for batch in batches:
            table = pa.Table.from_batches([batch])
            for first in range(0, table.num_rows, 16):
                yield from pa.Table.from_pylist(simulator.run(table.slice(first, 16)), schema=arrow).to_batches()

    return rows.repartition(partitions, "patient_id", "episode").mapInArrow(run, OUTCOMES_TABLE.schema)
