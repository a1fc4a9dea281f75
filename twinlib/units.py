"""The one registry of units (pint): sources convert with it, models are checked with it."""

from __future__ import annotations

import math
import re
from functools import lru_cache

import pint


@lru_cache(maxsize=1)
def registry() -> pint.UnitRegistry:
    """pint's units, with U for the international unit (pint's own U is the enzyme unit), and the body surface that filtration rates refer to."""
    units = pint.UnitRegistry(on_redefinition="ignore")
    units.define("international_unit = [international_unit] = U = IU")
    units.define("standard_body_surface = 1.73 * meter ** 2 = bsa")
    return units


def quantity(value, unit: str) -> pint.Quantity:
    """A number (or a symbol) with a unit, for the constants of a model's equations. Raises pint's errors on an unknown unit."""
    return registry().Quantity(value, unit)


@lru_cache(maxsize=256)
def factor(unit: str, target: str) -> float:
    """How many `target` one `unit` is. Raises pint's errors where they do not convert."""
    return float(registry().Quantity(1.0, unit).to(target).magnitude)


def span(value: object) -> float:
    """Minutes of a number (of minutes) or of a text with a unit of time, such as "36 h", "2 weeks" or "-15 min". Raises ValueError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    found = re.fullmatch(r"\s*([-+]?\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value) if isinstance(value, str) else None
    try:
        return float(found[1]) * factor(found[2], "min")
    except (TypeError, pint.errors.PintError, AttributeError):
        raise ValueError('expected a number of minutes, or a number with a unit of time such as "36 h" or "2 weeks"') from None
