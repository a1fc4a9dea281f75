"""The one registry of units (pint): sources convert with it, models are checked with it."""

from __future__ import annotations

from functools import lru_cache

import pint


@lru_cache(maxsize=1)
def registry() -> pint.UnitRegistry:
    """pint's units, with U for the international unit (pint's own U is the enzyme unit)."""
    units = pint.UnitRegistry(on_redefinition="ignore")
    units.define("international_unit = [international_unit] = U = IU")
    return units


def quantity(value, unit: str) -> pint.Quantity:
    """A number (or a symbol) with a unit, for the constants of a model's equations. Raises pint's errors on an unknown unit."""
    return registry().Quantity(value, unit)


@lru_cache(maxsize=256)
def factor(unit: str, target: str) -> float:
    """How many `target` one `unit` is. Raises pint's errors where they do not convert."""
    return float(registry().Quantity(1.0, unit).to(target).magnitude)
