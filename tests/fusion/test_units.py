"""Units and vocabulary against textbook factors."""

import pytest

from twinlib.errors import ConfigError
from twinlib.fusion.units import converter
from twinlib.fusion.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary()


def convert(name: str, kind: str | None, unit: str, value: float) -> float:
    quantity = VOCABULARY.agents[name] if kind else VOCABULARY.signals[name]
    affine = converter(VOCABULARY, name, quantity, kind).of(unit, "here")
    return affine.factor * value + affine.offset


@pytest.mark.parametrize(
    "name, kind, unit, value, canonical",
    [
        ("glucose", None, "mmol/L", 1, 18.0156),
        ("glucose", None, "mg/dl", 100, 100),
        ("glucose", None, "g/L", 1, 100),
        ("body_weight", None, "[lb_av]", 1, 0.45359237),  # international pound
        ("hba1c", None, "mmol/mol", 53, 7.0),  # the usual target, 7.0 %
        ("heart_rate", None, "bpm", 60, 60),
        ("insulin_bolus", "dose", "mU", 1500, 1.5),
        ("insulin_bolus", "dose", "IU", 2, 2),
        ("insulin_basal", "rate", "U/min", 0.01, 0.6),
        ("insulin_basal", "rate", "units/d", 24, 1),
        ("carbohydrate", "dose", "grams", 30, 30),
    ],
)
def test_factors(name, kind, unit, value, canonical):
    assert convert(name, kind, unit, value) == pytest.approx(canonical, rel=5e-4 if name == "hba1c" else 1e-12)


@pytest.mark.parametrize(
    "name, kind, unit",
    [("glucose", None, "furlong"), ("glucose", None, "kg"), ("insulin_basal", "rate", "U"), ("insulin_bolus", "dose", "g")],
)
def test_a_unit_that_does_not_convert_is_refused(name, kind, unit):
    with pytest.raises(ConfigError, match=f"here: unknown unit {unit!r} for {name}; expected one that converts to"):
        convert(name, kind, unit, 1)


def test_a_unit_column_understands_aliases():
    table = converter(VOCABULARY, "glucose", VOCABULARY.signals["glucose"], None).table()
    assert table["mmol/l"] == table["mmol/L"] and table["MG/DL"].factor == 1


def test_users_extend_the_vocabulary(tmp_path):
    path = tmp_path / "more.yaml"
    path.write_text("signals:\n  lactate: {unit: mmol/L, units: [mg/dL], molar_mass: 90.08, plausible: {from: 0, to: 30}}\n")
    more = load_vocabulary(str(path))
    assert set(more.signals) == {*VOCABULARY.signals, "lactate"}
    assert converter(more, "lactate", more.signals["lactate"], None).of("mg/dL", "x").factor == pytest.approx(1 / 9.008)
    path.write_text("signals:\n  lactate: {unit: mmol/L, plausible: {from: 3, to: 3}}\n")
    with pytest.raises(ConfigError, match="lower bound must be below"):
        load_vocabulary(str(path))
    with pytest.raises(ConfigError, match="unknown signal 'glucos'; known: glucose"):
        VOCABULARY.signal("glucos", "x")
    with pytest.raises(ConfigError, match="insulin_basal has no kind 'dose'; expected rate"):
        VOCABULARY.agent("insulin_basal", "dose", "x")
