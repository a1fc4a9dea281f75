"""Outcomes of trajectories against closed forms, and the ways to name outcomes."""

import numpy as np
import pytest
from pydantic import ValidationError

from twinlib.config import OutcomeConfig
from twinlib.errors import ConfigError
from twinlib.models import find as model
from twinlib.whatif.cgm import OUTCOMES
from twinlib.whatif.levels import measured
from twinlib.whatif.outcomes import Outcome, Trace, evaluate, find

from ..engine.drug import Drug

OWN = Outcome("range", "mg/L", -1, lambda t: t.values.max(-1) - t.values.min(-1), "largest less smallest")


def value(measure, trace, **settings):
    return measured(OutcomeConfig(name="x", measure=measure, better="lower", **settings), "mg/L").function(trace)


def test_a_decaying_level_has_the_area_and_times_of_its_closed_form():
    hours = np.linspace(0, 48, 4801)
    trace = Trace(hours * 60, np.stack([8 * np.exp(-0.1 * hours), 4 * np.exp(-0.2 * hours)]))
    assert value("auc", trace) == pytest.approx([80 * (1 - np.exp(-4.8)), 20 * (1 - np.exp(-9.6))], rel=1e-6)
    assert value("maximum", trace).tolist() == [8, 4] and value("minimum", trace) == pytest.approx([8 * np.exp(-4.8), 4 * np.exp(-9.6)])
    assert value("time_above", trace, limit=2.0) == pytest.approx([100 * np.log(4) / 0.1 / 48, 100 * np.log(2) / 0.2 / 48], rel=1e-4)
    assert value("time_below", trace, limit=2.0) == pytest.approx(100 - value("time_above", trace, limit=2.0))
    assert value("time_within", trace, low=1.0, high=2.0) == pytest.approx([100 * np.log(2) / 0.1 / 48, 100 * np.log(2) / 0.2 / 48], rel=1e-4)
    assert value("time_to_below", trace, limit=2.0) == pytest.approx([np.log(4) / 0.1 / 24, np.log(2) / 0.2 / 24], rel=1e-4)
    assert value("time_to_above", trace, limit=5.0).tolist() == [0, 2]  # never: the whole time
    assert value("ever_above", trace, limit=5.0).tolist() == [100, 0] and value("ever_below", trace, limit=0.01).tolist() == [0, 100]
    assert value("mean", trace) == pytest.approx(value("auc", trace) / 48) and value("final", trace) == pytest.approx(trace.values[:, -1])
    assert value("change", trace) == pytest.approx(trace.values[:, -1] - trace.values[:, 0])


def test_a_biomarker_over_years_has_its_slope_and_time_to_a_threshold():
    years = np.array([0.0, 0.5, 2.0, 5.0])  # irregular, with a missing value
    values = 7.0 + 0.3 * years
    values[1] = np.nan
    trace = Trace(years * 525_960, values[None])
    assert value("slope", trace) == pytest.approx([0.3]) and value("time_to_above", trace, limit=8.0) == pytest.approx([365.25 / 0.3])
    alone = Trace(np.array([0.0]), np.array([[7.0]]))
    assert np.isnan([value(m, alone, limit=8.0) for m in ("slope", "auc", "time_to_above", "ever_above", "time_below", "maximum")]).all()


def test_amounts_per_day_are_of_the_named_agents():
    trace = Trace(np.arange(3.0), np.ones((2, 3)), {"drug_oral": np.array([[10.0, 20.0]]), "drug_iv": np.array([[1.0, 2.0], [3.0, 4.0]])}, days=2.0)
    assert value("amount_per_day", trace, agent="drug_oral").tolist() == [15, 15]
    assert value("amount_per_day", trace, agent="drug").tolist() == [16.5, 18.5]


def test_outcomes_are_found_by_signal_name_and_measure():
    assert find((), model("glucose_insulin")) == OUTCOMES
    assert [o.name for o in find((), Drug())] == ["mean_level", "c_max", "c_min", "auc"] and find((), Drug())[3].unit == "mg/L*h"
    found = find((f"{__name__}:OWN", OutcomeConfig(name="on_target", measure="time_within", low=1.0, high=2.0, better="higher")), Drug())
    trace = Trace(np.array([0.0, 60.0]), np.array([[1.0, 3.0]]))
    assert evaluate(found, trace).tolist() == [[2.0, 50.0]] and found[1].meaning == "time within of the trajectory: low 1 mg/L, high 2 mg/L"
    assert found[0].version != OWN.__class__(OWN.name, OWN.unit, OWN.better, lambda t: 0, OWN.meaning).version


@pytest.mark.parametrize("wanted, message", [
    (("tir",), "expected cgm, levels, module:name of your own, or a measure"),
    (("no_module:X",), "cannot be imported"),
    (("twinlib.whatif.cgm:BETTER",), "is no Outcome"),
    (("cgm", "cgm"), "tir: stands more than once|stands more than once"),
    ((OutcomeConfig(name="x", measure="time_above", better="lower"),), "x: measure time_above needs limit"),
    ((OutcomeConfig(name="x", measure="amount_per_day", better="lower"),), "x: measure amount_per_day needs agent"),
])
def test_a_wrong_outcome_is_refused(wanted, message):
    with pytest.raises(ConfigError, match=message):
        find(wanted, Drug())


def test_an_unknown_measure_is_refused():
    with pytest.raises(ValidationError, match="measure"):
        OutcomeConfig(name="x", measure="median", better="lower")
