"""Recommendations against cases worked out by hand, and against a cohort whose best policies are known."""

import numpy as np
import pyarrow as pa
import pytest

from twinlib.config import RecommendConfig
from twinlib.errors import ConfigError
from twinlib.whatif.cgm import OUTCOMES
from twinlib.whatif.recommend import Policies, advice, choose, cohort_gains, one_size, options

SCENARIOS = ("as_is", "basal_0_9", "basal_1_1", "basal_1_2")
CONFIG = RecommendConfig(
    name="basal", scenarios=("basal_*",), objective="tir", safety=({"outcome": "tbr_54", "above": 1.0, "probability": 0.05},), credible=0.75
)


def policies(**changes):
    return Policies.of(CONFIG.model_copy(update=changes), SCENARIOS, OUTCOMES)


def rows(patients: dict) -> pa.Table:
    """patients: id -> scenario -> (effects of tir, levels of tbr_54); as they are 60 % and 0.5 %."""
    out = []
    for i, (p, arms) in enumerate(patients.items()):
        for s, (tir, tbr) in arms.items():
            same = {"patient_id": p, "episode": "e", "scenario": s, "factual_draws": None, "extrapolation": None, "key": i, "model": "m"}
            out.append(same | {"outcome": "tir", "factual": 60.0, "effect_draws": [float(x) for x in tir]})
            out.append(same | {"outcome": "tbr_54", "factual": 0.5, "effect_draws": [x - 0.5 for x in tbr]})
    return pa.Table.from_pylist(out)


SAFE, RISKY = [0.2, 0.3, 0.2, 0.1], [0.2, 0.3, 2.0, 0.1]


def test_the_best_safe_policy_is_advised_or_no_change():
    found = {
        r["patient_id"]: r
        for r in advice(options(rows({
            "gains": {"basal_0_9": ([1, 1, 1, 1], SAFE), "basal_1_1": ([4, 5, 6, 5], SAFE), "basal_1_2": ([9, 9, 9, 9], RISKY)},
            "unsure": {"basal_0_9": ([-9, -9, -9, -9], SAFE), "basal_1_1": ([20, 20, -1, -1], SAFE), "basal_1_2": ([-1, -1, -1, -1], SAFE)},
            "unsafe": {s: ([9, 9, 9, 9], RISKY) for s in SCENARIOS[1:]},
            "one": {"basal_1_1": ([1, 2, 3, -1], SAFE)},
        }), policies()), policies())
    }
    gains = found["gains"]
    assert (gains["status"], gains["scenario"], gains["n_policies"], gains["n_safe"]) == ("change", "basal_1_1", 3, 2)
    assert gains["gain_mean"] == 5 and gains["gain_q05"] == 4 and gains["gain_q95"] == 6 and gains["probability_beats_current"] == 1
    assert gains["probability_best"] == 1 and gains["factual"] == 60
    unsure = found["unsure"]
    assert (unsure["status"], unsure["scenario"], unsure["best"], unsure["probability_beats_current"]) == ("no_change", None, "basal_1_1", 0.5)
    assert unsure["probability_best"] == 0.5 and unsure["reason"] == "nothing is credibly better"
    assert (found["unsafe"]["status"], found["unsafe"]["reason"], found["unsafe"]["n_safe"]) == ("no_change", "no policy is safe", 0)
    assert (found["one"]["status"], found["one"]["n_policies"]) == ("change", 1)
    wary = {r["patient_id"]: r["status"] for r in advice(options(rows({"one": {"basal_1_1": ([1, 2, 3, -1], SAFE)}}), policies()), policies(credible=0.8))}
    assert wary == {"one": "no_change"}


def test_a_lower_objective_is_a_gain_where_lower_is_better():
    lower = policies(objective="tar_180", safety=())
    table = rows({"a": {"basal_1_1": ([-4, -5, -6, -5], SAFE), "basal_0_9": ([4, 5, 6, 5], SAFE)}})
    table = table.set_column(table.schema.get_field_index("outcome"), "outcome", pa.array(["tar_180" if o == "tir" else o for o in table["outcome"].to_pylist()]))
    (row,) = advice(options(table, lower), lower)
    assert row["scenario"] == "basal_1_1" and row["gain_mean"] == 5


def test_personalised_beats_one_size_by_what_the_truth_says():
    """Half of the patients gain 5 by more insulin and lose 4 by less, the other half the other way round."""
    rng = np.random.default_rng(0)
    arms = lambda sign: {  # noqa: E731
        "basal_0_9": (-4.5 * sign + 0.5 + rng.normal(0, 0.5, 32), SAFE * 8), "basal_1_1": (4.5 * sign + 0.5 + rng.normal(0, 0.5, 32), SAFE * 8),
        "basal_1_2": (rng.normal(-1, 0.5, 32), SAFE * 8),
    }
    table = rows({f"p{i:02}": arms(1 if i % 2 else -1) for i in range(40)})
    o = options(table, policies())
    assert o.gains.shape == (40, 3, 32) and policies().scenarios[one_size(o, policies())] in ("basal_0_9", "basal_1_1")
    out = cohort_gains(o, policies())
    assert out["gain_personalised_mean"] == pytest.approx(5, abs=0.1) and out["gain_one_size_mean"] == pytest.approx(0.5, abs=0.2)
    assert out["gain_of_personalising_mean"] == pytest.approx(out["gain_personalised_mean"] - out["gain_one_size_mean"])
    assert 3 < out["gain_of_personalising_q05"] < out["gain_of_personalising_mean"] < out["gain_of_personalising_q95"] < 6
    assert choose(o, CONFIG).change.all()
    harmful = rows({f"p{i}": {"basal_1_1": ([-1.0] * 4, SAFE)} for i in range(3)})
    none = cohort_gains(options(harmful, policies()), policies())
    assert none["one_size"] is None and none["gain_personalised_mean"] == none["gain_one_size_mean"] == 0


@pytest.mark.parametrize("changes, message", [
    ({"scenarios": ("bolus_*",)}, "recommend basal: scenarios: no scenario is called bolus_"),
    ({"objective": "tirr"}, "recommend basal: unknown outcome tirr; known are tir"),
    ({"objective": "insulin_per_day"}, "neither direction of it is better"),
])
def test_what_is_wrong_is_said(changes, message):
    with pytest.raises(ConfigError, match=message):
        policies(**changes)
