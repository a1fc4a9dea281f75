"""Mapping files: what is refused, and that the message says where and what was expected."""

import copy

import pytest
import yaml

from tests.sources import mapping_file
from twinlib.errors import ConfigError
from twinlib.sources.mapping import load_mapping

GOOD = {
    "name": "clinic",
    "files": [
        {
            "name": "cgm",
            "glob": "*.csv",
            "format": "csv",
            "patient": {"column": "id"},
            "time": {"column": "at", "zone": "Europe/London"},
            "entries": [{"observation": "glucose", "value": {"column": "mgdl", "unit": "mg/dL"}}],
        }
    ],
}


def test_the_shipped_mappings_are_valid(repo):
    paths = sorted((repo / "conf" / "mappings").glob("*.yaml"))
    assert len(paths) >= 5
    assert len({load_mapping(p).name for p in paths}) == len(paths)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda g: g.update(tiem=g.pop("time")), "tiem"),
        (lambda g: g["time"].update(zone="Europe/Londn"), "Europe/Londn"),
        (lambda g: g["time"].update(formats=["%d/%m/%Y"]), "%d/%m/%Y"),
        (lambda g: g["time"].update(zone="offset"), "offset_column"),
        (lambda g: g["time"].update(order="auto"), "order auto"),
        (lambda g: g["patient"].update(constant="x"), "exactly one of `column`, `file` and `constant`"),
        (lambda g: g.update(patient={"file": "(a"}), "regular expression"),
        (lambda g: g.update(patient={"file": "abc"}), "exactly one group"),
        (lambda g: g.update(encoding="utf-99"), "utf-99"),
        (lambda g: g.update(format="xlsx"), "format"),
        (lambda g: g["entries"][0].update(exposure="insulin_bolus"), "exactly one of"),
        (lambda g: g["entries"][0].pop("value"), "needs `value`"),
        (lambda g: g["entries"][0]["value"].pop("unit"), "needs `unit`"),
        (lambda g: g["entries"][0].update(label="x"), "exposure only"),
        (lambda g: g.update(entries=g["entries"] * 2), "different names"),
    ],
)
def test_a_wrong_mapping_is_refused_with_its_place(tmp_path, change, expected):
    mapping = copy.deepcopy(GOOD)
    change(mapping["files"][0])
    path = mapping_file(tmp_path, mapping)
    with pytest.raises(ConfigError) as e:
        load_mapping(path)
    assert expected in str(e.value) and str(path) in str(e.value)


def test_scalars_of_yaml_are_texts_in_filters(tmp_path):
    mapping = copy.deepcopy(GOOD)
    mapping["files"][0]["entries"][0]["when"] = yaml.safe_load("{kind: [1, cgm], valid: true}")
    entry = load_mapping(mapping_file(tmp_path, mapping)).files[0].entries[0]
    assert entry.when == {"kind": ("1", "cgm"), "valid": ("true",)}
