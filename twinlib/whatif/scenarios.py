"""Scenarios: named lists of edits to a patient's inputs, read from YAML and checked before anything runs.

The vocabulary of inputs comes from the model and from the file's own aliases; nothing here knows of glucose or insulin.
The language is described in docs/scenarios.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from twinlib.config import Strict, read_yaml, validate
from twinlib.errors import ConfigError
from twinlib.models.timeline import Inputs
from twinlib.whatif.edits import EDITS, Edit
from twinlib.whatif.selection import Clock, Names

_SEMANTICS = 1  # raise when the meaning of an edit changes, so that stored outcomes are computed again


@dataclass(frozen=True)
class Scenario:
    """A named intervention. No edits: what happened, as it is (the null scenario)."""

    name: str
    meaning: str = ""
    edits: tuple[Edit, ...] = ()

    @property
    def hash(self) -> str:
        """Hash of what the scenario does: equal for equal edits, whatever its name and meaning say."""
        what = [_SEMANTICS, [[type(e).__name__, e.model_dump(mode="json")] for e in self.edits]]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class _Named(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    meaning: str = ""
    edits: tuple[dict, ...] = ()


class _File(Strict):
    aliases: dict[str, Names] = {}
    scenarios: Annotated[tuple[_Named, ...], Field(min_length=1)]


def load_scenarios(path: str | Path, known_inputs: Iterable[str]) -> tuple[Scenario, ...]:
    """The scenarios of a YAML file, in its order; `known_inputs` are the inputs of the model that will run them.

    Raises ConfigError that names the file, the scenario and the edit.
    """
    file = validate(_File, read_yaml(path), path)
    known = {name: (name,) for name in known_inputs}
    for alias, names in file.aliases.items():
        if alias in known:
            raise ConfigError(f"{path}: alias {alias}: is the name of an input")
        _resolve({"input": list(names)}, known, f"{path}: alias {alias}")
    vocabulary = known | file.aliases
    names = [s.name for s in file.scenarios]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: scenario {name}: stands more than once")
    return tuple(
        Scenario(
            s.name,
            s.meaning,
            tuple(_edit(e, vocabulary, f"{path}: scenario {s.name}: edit {i}") for i, e in enumerate(s.edits, 1)),
        )
        for s in file.scenarios
    )


def _edit(data: dict, vocabulary: dict[str, tuple[str, ...]], place: str) -> Edit:
    do = data.get("do")
    if not isinstance(do, str) or do not in EDITS:
        raise ConfigError(f"{place}: do: expected one of {', '.join(EDITS)}")
    rest = {k: v for k, v in data.items() if k != "do"}
    return validate(EDITS[do], _resolve(rest, vocabulary, place), f"{place} ({do})")


def _resolve(data: object, vocabulary: dict[str, tuple[str, ...]], place: str) -> object:
    """`data` with the value of every key `input` replaced by the inputs that it names."""
    if not isinstance(data, dict):
        return data
    out = {}
    for key, value in data.items():
        if key == "input":
            wanted = [value] if isinstance(value, str) else value if isinstance(value, list) else []
            for name in wanted:
                if name not in vocabulary:
                    raise ConfigError(f"{place}: unknown input {name}; known are {', '.join(sorted(vocabulary))}")
            value = tuple(dict.fromkeys(n for name in wanted for n in vocabulary[name]))
        out[key] = _resolve(value, vocabulary, place)
    return out


def apply(scenario: Scenario, inputs: Inputs, *, minutes: float, local_start: float = 0.0) -> Inputs:
    """The inputs under the scenario: its edits in order, each on what the previous one left. `inputs` is not changed.

    minutes: length of the episode; local_start: local minute of the day at minute 0 (0 for timelines, which start at
    local midnight). No edit moves an event out of the episode.
    """
    clock = Clock(minutes, local_start)
    for edit in scenario.edits:
        inputs = edit.apply(inputs, clock)
    return inputs


def applicable(scenario: Scenario, inputs: Inputs) -> str | None:
    """Why the scenario cannot be applied to a patient with these inputs; None where it can.

    It cannot where an edit changes an input, or refers to one, of which the patient has no events, or selects by label
    where no event has one: a zero effect would be an artefact of missing records. Records of which none happens to be
    selected are another matter: there the effect is truly zero.
    """
    return next((reason for edit in scenario.edits if (reason := edit.lacks(inputs))), None)
