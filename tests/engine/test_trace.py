"""Errors in a model's declaration or equations name the line at fault."""

import re
from dataclasses import replace

import pytest

from twinlib.engine.contract import Input, ModelError, Parameter, Signal, State, additive, quantity
from twinlib.engine.expressions import exp, maximum
from twinlib.engine.trace import trace
from twinlib.models import find

from .tumour import Tumour


def line_of(text: str) -> int:
    """The line of this file that holds `text` first."""
    with open(__file__) as f:
        return next(n for n, line in enumerate(f, start=1) if text in line and "line_of" not in line)


def test_an_unknown_name_is_an_error_that_names_the_line_and_the_known_names():
    class Wrong(Tumour):
        def dynamics(self, x, u, p, c):
            return {"volume": p.growth * x.volume, "drug": 0}

    with pytest.raises(ModelError, match=rf"test_trace.py:{line_of('p.growth *')}: model: unknown parameter 'growth'; known: growth_rate, capacity"):
        trace(Wrong())


def test_branching_on_a_traced_value_is_an_error_with_a_hint():
    class Wrong(Tumour):
        def dynamics(self, x, u, p, c):
            rate = p.growth_rate if x.volume > quantity(5, "mL") else 0
            return {"volume": rate * x.volume, "drug": 0}

    with pytest.raises(ModelError, match=rf"test_trace.py:{line_of('rate = p.growth_rate if')}: TypeError: .*cannot branch on a traced value"):
        trace(Wrong())


def test_units_that_do_not_match_are_errors_at_their_line():
    class Sum(Tumour):
        def dynamics(self, x, u, p, c):
            mixed = x.volume + x.drug
            return {"volume": mixed, "drug": 0}

    with pytest.raises(ModelError, match=rf"test_trace.py:{line_of('mixed = x.volume')}: units do not match: .*'milliliter'"):
        trace(Sum())

    class Rate(Tumour):
        def dynamics(self, x, u, p, c):
            return {
                "drug": u.infusion,
                "volume": x.volume,  # no rate
            }

    with pytest.raises(ModelError, match=rf"test_trace.py:{line_of('# no rate')}: dynamics of volume must be in ml / d; it is ml"):
        trace(Rate())

    class Exponent(Tumour):
        def observe(self, x, p, c):
            return {"volume": additive(quantity(1.0, "mL") * exp(x.volume), quantity(1.0, "mL"))}

    with pytest.raises(ModelError, match=rf"test_trace.py:{line_of('* exp(x.volume)')}: units do not match"):
        trace(Exponent())

    class Plain(Tumour):
        def initial(self, p, c):
            return {"volume": 10.0, "drug": 0}

    with pytest.raises(ModelError, match="initial of volume must be in ml; it is a plain number"):
        trace(Plain())


def test_units_are_converted():
    class Litres(Tumour):
        def initial(self, p, c):
            return {"volume": quantity(0.01, "L"), "drug": 0}

    assert trace(Litres()).x0[0] == 10.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": (State("volume", "millilitter"), State("drug", "mg/L"))}, "state volume: unknown unit 'millilitter'"),
        ({"inputs": (Input("infusion", "mg/L/day", ("drug",), "mg"),)}, "input infusion: mg over day is no rate in mg/L/day"),
        ({"signals": (Signal("size", "mL"),)}, "observe must return a Reading for each of the signals size"),
        ({"states": (State("volume", "mL", noise=True), State("drug", "mg/L"))}, "states declared with noise"),
    ],
)
def test_declarations_are_checked(changes, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        trace(type("Wrong", (Tumour,), changes)())


def test_noise_may_depend_on_inputs_that_last():
    class Restless(Tumour):
        states = (State("volume", "mL", noise=True), *Tumour.states[1:])

        def noise(self, x, u, p, c):
            return {"volume": quantity(1.0, "mL**2/day") * (1 + u.infusion * quantity(1.0, "L*day/mg"))}

    with pytest.raises(ModelError, match="noise cannot depend on an input that acts at once"):
        trace(Restless())
    lasting = type("Lasting", (Restless,), {"inputs": tuple(replace(i, spread=1.0) for i in Tumour.inputs)})
    assert trace(lasting()).q[0].free_symbols == {trace(lasting()).u[0]}


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


def test_an_input_that_acts_at_once_must_not_depend_on_the_state():
    class Wrong(Tumour):
        def dynamics(self, x, u, p, c):
            return {"volume": 0, "drug": u.infusion * maximum(x.volume / quantity(1, "mL"), 1)}

    with pytest.raises(ModelError, match="acts at once .spread 0. must add to drug whatever the state"):
        trace(Wrong())


def test_a_prior_must_be_proper():
    with pytest.raises(ModelError, match="prior sd"):
        Parameter("rate", "1/day", 1.0, 0.0, "")
    with pytest.raises(ModelError, match="range of logit"):
        Parameter("share", "", 1.5, 0.5, "", transform="logit")
    with pytest.raises(ModelError, match="level 'person'"):
        Parameter("rate", "1/day", 1.0, 0.5, "", level="person")


def test_unknown_models_are_named():
    with pytest.raises(ModelError, match="unknown model 'glucos'; known: biomarker_turnover, glucose_insulin"):
        find("glucos")
    with pytest.raises(ModelError, match="cannot be imported"):
        find("nowhere:Model")


def test_noise_reaches_only_what_depends_on_it():
    system = trace(find("glucose_insulin"))
    names = [s.name for s in find("glucose_insulin").states]
    assert [names[i] for i in system.noisy] == ["glucose", "interstitial_glucose", "flux"]
