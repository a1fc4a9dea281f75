"""The figure of the README, made from the tables of a run: python -m twinlib.report.figure out/demo docs/demo.png"""

from __future__ import annotations

import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from twinlib.engine.kernel import Kernel
from twinlib.models import find
from twinlib.models.batch import decode
from twinlib.report.plots import plot_effects, plot_twin
from twinlib.tables.query import connect
from twinlib.whatif.scenarios import load_scenarios
from twinlib.whatif.simulate import Replay


def overview(folder: str, scenarios: str, path: str, scenario: str = "bolus_15_min_before_meals") -> None:
    """Effects on time in range, and two days of the patient for whom `scenario` does most, as a PNG file."""
    tables = connect(folder)
    effects = tables.execute("SELECT * FROM cohort_effects WHERE subgroup = 'all' AND n_patients > 0 AND scenario != 'as_is'").df()
    patient = tables.execute(
        "SELECT patient_id, episode FROM outcomes WHERE scenario = ? AND outcome = 'tir' AND status = 'ok' ORDER BY effect_mean DESC, patient_id",
        [scenario],
    ).fetchall()[0]
    where = "WHERE patient_id = ? AND episode = ?"
    line = tables.sql(f"SELECT * FROM timelines {where}", params=patient).to_arrow_table()
    name, draws = tables.execute(f"SELECT model, draws FROM twins {where}", patient).fetchall()[0]
    model = find(name)
    replay = Replay.abduct(Kernel(model), decode(line), np.array(draws).reshape(-1, len(model.fitted)))
    edited = replay.counterfactual(next(s for s in load_scenarios(scenarios, model.agents) if s.name == scenario))
    step = line.column("step_minutes")[0].as_py()
    per_day = 1440 // step
    slots = slice(3 * per_day, 5 * per_day)
    figure, axes = plt.subplots(1, 2, figsize=(14, 4.2), width_ratios=(1, 1.5), layout="constrained")
    plot_effects(effects, "tir", axes[0])
    hours = np.arange(len(replay.readings))[slots] * step / 60
    plot_twin(hours, replay.readings[slots], replay.factual[:, slots], edited[:, slots], scenario.replace("_", " "), axes[1])
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    matplotlib.use("Agg")
    overview(sys.argv[1], "conf/scenarios.yaml", sys.argv[2])
