"""Errors in a model's declaration or equations name the line at fault."""

import pytest

from twinlib.engine.contract import ModelError, Parameter, State
from twinlib.engine.trace import trace
from twinlib.models import find

from .tumour import Tumour


def test_an_unknown_name_is_an_error_that_names_the_line_and_the_known_names():
    class Wrong(Tumour):
        def dynamics(self, x, u, p, c):
            return {"volume": p.growth * x.volume, "drug": 0}

    with pytest.raises(ModelError, match=r"test_trace.py:\d+: model: unknown parameter 'growth'; known: growth_rate, capacity"):
        trace(Wrong())


def test_branching_on_a_traced_value_is_an_error_with_a_hint():
    class Wrong(Tumour):
        def dynamics(self, x, u, p, c):
            rate = p.growth_rate if x.volume > 5 else 0
            return {"volume": rate * x.volume, "drug": 0}

    with pytest.raises(ModelError, match=r"test_trace.py:\d+: TypeError: .*cannot branch on a traced value"):
        trace(Wrong())


@pytest.mark.parametrize(
    ("rates", "message"),
    [({"volume": 0}, "lacks states drug"), ({"volume": 0, "drug": 0, "weight": 1}, "undefined states weight"), ([0, 0], "must return a dict")],
)
def test_rates_must_be_those_of_the_states(rates, message):
    class Wrong(Tumour):
        def dynamics(self, x, u, p, c):
            return rates

    with pytest.raises(ModelError, match=message):
        trace(Wrong())


def test_noise_must_be_declared():
    class Wrong(Tumour):
        states = (State("volume", "mL", noise=True), State("drug", "mg/L"))

    with pytest.raises(ModelError, match="states declared with noise"):
        trace(Wrong())


def test_a_prior_must_be_proper():
    with pytest.raises(ModelError, match="prior sd"):
        Parameter("rate", "1/day", 1.0, 0.0, "")


def test_unknown_models_are_named():
    with pytest.raises(ModelError, match="unknown model 'glucos'; known: glucose_insulin"):
        find("glucos")
    with pytest.raises(ModelError, match="cannot be imported"):
        find("nowhere:Model")


def test_noise_reaches_only_what_depends_on_it():
    system = trace(find("glucose_insulin"))
    names = [s.name for s in find("glucose_insulin").states]
    assert [names[i] for i in system.noisy] == ["glucose", "interstitial_glucose", "flux"]
