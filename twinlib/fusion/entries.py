"""What every entry of every source means, resolved against the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from twinlib.fusion.units import Converter, converter
from twinlib.fusion.vocabulary import Affine, Agent, Quantity, Range, Vocabulary
from twinlib.sources.records import Meaning, Source

FIXED = ""  # unit text of records whose unit is declared in the mapping


@dataclass(frozen=True)
class Entry:
    """One entry: its number in the run, the number of its source (priority: lower wins), and how its numbers are read."""

    number: int
    origin: int
    meaning: Meaning
    plausible: Range | None = None
    canonical: str = ""
    adds: bool = False
    units: tuple[tuple[str, Affine], ...] = ()  # unit text -> conversion
    alternatives: tuple[Affine, ...] = ()  # of the units that the numbers might be in by mistake


def interpret(sources: Sequence[Source], vocabulary: Vocabulary) -> list[Entry]:
    """All entries in order. Raises ConfigError where a signal, agent, event, kind or unit is unknown."""
    meanings = [(origin, m) for origin, source in enumerate(sources) for m in source.meanings]
    return [_entry(number, origin, m, vocabulary) for number, (origin, m) in enumerate(meanings)]


def _entry(number: int, origin: int, meaning: Meaning, vocabulary: Vocabulary) -> Entry:
    entry = Entry(number, origin, meaning)
    if meaning.target == "observation":
        quantity = vocabulary.signal(meaning.name, meaning.where)
        return _with_units(replace(entry, plausible=quantity.plausible), quantity, vocabulary)
    if meaning.target == "exposure":
        quantity, plausible = vocabulary.agent(meaning.name, meaning.kind, meaning.where)
        return _with_units(replace(entry, plausible=plausible, adds=_adds(quantity, meaning)), quantity, vocabulary)
    if meaning.target == "event":
        vocabulary.event(meaning.name, meaning.where)
        return replace(entry, adds=True)  # two visits that begin at one instant are both true
    return entry


def _adds(agent: Agent, meaning: Meaning) -> bool:
    return meaning.kind == "treatment" or meaning.kind == "dose" and agent.same_instant == "add"


def _with_units(entry: Entry, quantity: Quantity, vocabulary: Vocabulary) -> Entry:
    m = entry.meaning
    convert: Converter = converter(vocabulary, m.name, quantity, m.kind)
    units: dict[str, Affine] = {}
    if m.value.unit_column:
        units |= convert.table()
        units |= {text: convert.of(unit, m.where) for text, unit in m.value.units.items()}
    if m.value.unit:
        units[FIXED] = convert.of(m.value.unit, m.where)
    alternatives = tuple(dict.fromkeys(convert.of(u, m.where) for u in convert.units))
    return replace(entry, canonical=convert.canonical, units=tuple(units.items()), alternatives=alternatives)


def affine(entry: Entry, texts: Sequence[str]) -> np.ndarray:
    """(2, n + 1) factor and shift of the units named by `texts` (canonical = factor * value + shift), NaN where a unit is unknown; the last column
    is that of no unit."""
    known = {text: (a.factor, a.offset) for text, a in entry.units}
    return np.array([known.get(t, (np.nan, np.nan)) for t in [*texts, None]]).T
