"""Unit conversion: pint works out factors once on the driver; Spark applies them as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from twinlib.errors import ConfigError
from twinlib.fusion.vocabulary import Affine, Quantity, Vocabulary
from twinlib.units import registry

_PER_TIME = ("h", "min", "d")


@lru_cache(maxsize=1024)
def _factor(unit: str, canonical: str, molar_mass: float | None) -> float:
    """How many `canonical` one `unit` is. Raises pint's errors."""
    units = registry()
    one, target = units.Quantity(1.0, units.parse_units(unit)), units.parse_units(canonical)
    if molar_mass is not None and not one.is_compatible_with(target):
        mass = units.Quantity(molar_mass, "g/mol")
        one = one * mass if (one * mass).is_compatible_with(target) else one / mass
    return float(one.to(target).magnitude)


@dataclass(frozen=True)
class Converter:
    """Units of one signal, or of one agent and kind, to its canonical unit (a rate's is per hour)."""

    name: str
    quantity: Quantity
    rate: bool
    aliases: dict[str, str]

    @property
    def canonical(self) -> str:
        return f"{self.quantity.unit}/h" if self.rate else self.quantity.unit

    @property
    def units(self) -> tuple[str, ...]:
        listed = dict.fromkeys((self.quantity.unit, *self.quantity.units, *self.quantity.conversions))
        return tuple(f"{u}/{t}" for u in listed for t in _PER_TIME) if self.rate else tuple(listed)

    def of(self, unit: str, where: str) -> Affine:
        """canonical = factor * value + offset for a unit or an alias. Raises ConfigError where it cannot be converted."""
        unit = self._spelled(unit)
        if unit in self.quantity.conversions and not self.rate:
            return self.quantity.conversions[unit]
        try:
            factor = _factor(unit, self.canonical, self.quantity.molar_mass)
            # mg/dL per mmol/L must be the textbook's 18.0156, not 18.015600000000003
            return Affine(factor=float(f"{factor:.15g}"))
        except Exception:  # pint raises several kinds of error on a text that is no unit
            raise ConfigError(
                f"{where}: unknown unit {unit!r} for {self.name}; expected one that converts to {self.canonical}, "
                f"such as {', '.join(self.units)}"
            ) from None

    def table(self) -> dict[str, Affine]:
        """Every unit text that a unit column may hold, aliases included."""
        known = {u: self.of(u, self.name) for u in self.units}
        for alias, unit in self.aliases.items():
            for text, target in [(f"{alias}/{t}", f"{unit}/{t}") for t in _PER_TIME] if self.rate else [(alias, unit)]:
                if target in known:
                    known.setdefault(text, known[target])
        return known

    def _spelled(self, unit: str) -> str:
        if unit in self.units:
            return unit
        head, slash, tail = unit.rpartition("/")
        if self.rate and slash:
            return f"{self.aliases.get(head, head)}/{tail}"
        return self.aliases.get(unit, unit)


def converter(vocabulary: Vocabulary, name: str, quantity: Quantity, kind: str | None) -> Converter:
    return Converter(name, quantity, kind == "rate", vocabulary.unit_aliases)
