"""Scenarios: named lists of edits, parameter changes and rules, read from YAML and checked before anything runs.

The vocabulary of inputs and parameters comes from the model and from the file's own aliases; nothing here knows of glucose or insulin.
The language is described in docs/scenarios.md.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from twinlib.config import Strict, read_yaml, validate
from twinlib.errors import ConfigError
from twinlib.models.timeline import Inputs
from twinlib.whatif import edits as verbs
from twinlib.whatif.edits import Edit
from twinlib.whatif.rules import RULES, Rule
from twinlib.whatif.selection import Names, Scene, Span, Window, in_window
from twinlib.whatif.therapy import CarbohydrateRatio, CorrectionFactor

_SEMANTICS = 2  # raise when the meaning of an edit changes, so that stored outcomes are computed again


class Change(Strict):
    """A parameter of the twin is multiplied by `factor`: all the time, from `from` to `until`, or in a daily window of local time."""

    parameter: str
    factor: Annotated[float, Field(strict=True, gt=0, le=100)]
    time: Window | None = None
    start: Annotated[Span, Field(ge=0)] = Field(0.0, alias="from")
    end: Span | None = Field(None, alias="until")

    def factors(self, minutes: np.ndarray, scene: Scene) -> np.ndarray:
        """(n,) factor that holds from each of n minutes on."""
        holds = minutes >= scene.begin + self.start
        if self.end is not None:
            holds &= minutes < scene.begin + self.end
        if self.time is not None:
            holds &= in_window(self.time, scene.time_of_day(minutes))
        return np.where(holds, self.factor, 1.0)

    def lacks(self, inputs: Inputs, scene: Scene) -> None:
        return None


EDITS: dict[str, type[Edit]] = {
    "scale": verbs.Scale, "replace": verbs.Replace, "remove": verbs.Remove, "stop": verbs.Stop, "cap": verbs.Cap, "miss": verbs.Miss,
    "shift": verbs.Shift, "align": verbs.Align, "add": verbs.Add, "start": verbs.Add, "switch": verbs.Switch, "profile": verbs.Profile,
    "carbohydrate_ratio": CarbohydrateRatio, "correction_factor": CorrectionFactor,
}
VERBS: dict[str, type[Strict]] = EDITS | {"change": Change} | RULES
_LISTS = {"input", "to", "labels", "at", "rates"}  # keys whose value may be a list by itself: no grid


@dataclass(frozen=True)
class Scenario:
    """A named intervention. No edits: what happened, as it is (the null scenario)."""

    name: str
    meaning: str = ""
    edits: tuple[Edit | Change | Rule, ...] = ()

    @property
    def hash(self) -> str:
        """Hash of what the scenario does: equal for equal edits, whatever its name and meaning say."""
        what = [_SEMANTICS, [[type(e).__name__, e.model_dump(mode="json")] for e in self.edits]]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(e for e in self.edits if isinstance(e, Change))

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(e for e in self.edits if isinstance(e, Rule))


class _Named(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    meaning: str = ""
    combine: tuple[str, ...] = ()
    edits: tuple[dict, ...] = ()


class _File(Strict):
    aliases: dict[str, Names] = {}
    scenarios: Annotated[tuple[_Named, ...], Field(min_length=1)]


def load_scenarios(path: str | Path, known_inputs: Iterable[str], known_parameters: Iterable[str] = ()) -> tuple[Scenario, ...]:
    """The scenarios of a YAML file, in its order, grids expanded; the inputs and parameters are those of the model that will run them.

    Raises ConfigError that names the file, the scenario and the edit.
    """
    file = validate(_File, read_yaml(path), path)
    known = {name: (name,) for name in known_inputs}
    for alias, names in file.aliases.items():
        if alias in known:
            raise ConfigError(f"{path}: alias {alias}: is the name of an input")
        _resolve({"input": list(names)}, known, f"{path}: alias {alias}")
    vocabulary, parameters = known | file.aliases, tuple(known_parameters)
    families: dict[str, list[Scenario]] = {}  # by the name in the file: one scenario, or those of a grid
    for s in file.scenarios:
        place = f"{path}: scenario {s.name}"
        if s.name in families:
            raise ConfigError(f"{place}: stands more than once")
        unknown = [c for c in s.combine if c not in families]
        if unknown:
            raise ConfigError(f"{place}: combine: {', '.join(unknown)}: no scenario of that name stands above")
        own = [
            (suffix, tuple(_edit(e, vocabulary, parameters, f"{place}: edit {i}") for i, e in enumerate(edits, 1)))
            for suffix, edits in _expanded(s.edits)
        ]
        families[s.name] = [
            _combined(s, [m.removeprefix(f"{c}_") for c, m in zip(s.combine, (p.name for p in parts)) if len(families[c]) > 1], parts, suffix, edits)
            for parts in itertools.product(*[families[c] for c in s.combine])
            for suffix, edits in own
        ]
    scenarios = tuple(s for family in families.values() for s in family)
    names = [s.name for s in scenarios]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: scenario {name}: stands more than once")
    return scenarios


def _combined(named: _Named, members: list[str], parts: tuple[Scenario, ...], suffix: str, own: tuple) -> Scenario:
    name = "_".join([named.name, *members, *([suffix] if suffix else [])])
    return Scenario(name, named.meaning, tuple(e for p in parts for e in p.edits) + own)


def _expanded(edits: tuple[dict, ...]) -> list[tuple[str, tuple[dict, ...]]]:
    """The edits for every combination of the values of a grid, each with a name for these values; one without name where there is no grid."""
    axes = [
        [(i, key, value) for value in values]
        for i, e in enumerate(edits)
        for key, values in e.items()
        if isinstance(values, list) and key not in _LISTS and values
    ]
    out = []
    for point in itertools.product(*axes):
        chosen = [dict(e) for e in edits]
        for i, key, value in point:
            chosen[i][key] = value
        out.append(("_".join(_slug(value) for _, _, value in point), tuple(chosen)))
    return out


def _slug(value: object) -> str:
    text = str(value).lower().replace("-", "minus_")
    return "".join(c if c.isalnum() else "_" for c in text)


def _edit(data: dict, vocabulary: dict[str, tuple[str, ...]], parameters: tuple[str, ...], place: str) -> Edit | Change | Rule:
    do = data.get("do")
    if not isinstance(do, str) or do not in VERBS:
        raise ConfigError(f"{place}: do: expected one of {', '.join(VERBS)}")
    rest = {k: v for k, v in data.items() if k != "do"}
    edit = validate(VERBS[do], _resolve(rest, vocabulary, place), f"{place} ({do})")
    if isinstance(edit, Change) and edit.parameter not in parameters:
        raise ConfigError(f"{place} ({do}): parameter: unknown parameter {edit.parameter}; known are {', '.join(parameters) or 'none'}")
    return edit


def _resolve(data: object, vocabulary: dict[str, tuple[str, ...]], place: str) -> object:
    """`data` with the value of every key `input` or `to` replaced by the inputs that it names."""
    if not isinstance(data, dict):
        return data
    out = {}
    for key, value in data.items():
        if key == "input" or (key == "to" and not isinstance(value, dict)):
            wanted = [value] if isinstance(value, str) else value if isinstance(value, list) else []
            for name in wanted:
                if name not in vocabulary:
                    raise ConfigError(f"{place}: unknown input {name}; known are {', '.join(sorted(vocabulary))}")
            value = tuple(dict.fromkeys(n for name in wanted for n in vocabulary[name]))
        out[key] = _resolve(value, vocabulary, place)
    return out


def apply(scenario: Scenario, inputs: Inputs, *, minutes: float, local_start: float = 0.0) -> Inputs:
    """The inputs under the scenario where nothing but the clock is known (see `edited`)."""
    return edited(scenario, inputs, Scene(minutes, local_start))


def edited(scenario: Scenario, inputs: Inputs, scene: Scene) -> Inputs:
    """The inputs under the scenario: its edits in order, each on what the previous one left, rules without what they order.

    `inputs` is not changed. No edit moves an event out of the episode.
    """
    for edit in scenario.edits:
        if isinstance(edit, Edit):
            inputs = edit.apply(inputs, scene)
        elif isinstance(edit, Rule):
            inputs = edit.edited(inputs, scene)
    return inputs


def applicable(scenario: Scenario, inputs: Inputs, scene: Scene = Scene(0.0)) -> str | None:
    """Why the scenario cannot be applied to a patient with these inputs; None where it can.

    It cannot where an edit changes an input, or refers to one, of which the patient has no events, or selects by label
    where no event has one: a zero effect would be an artefact of missing records. Records of which none happens to be
    selected are another matter: there the effect is truly zero.
    """
    return next((reason for edit in scenario.edits if (reason := edit.lacks(inputs, scene))), None)
