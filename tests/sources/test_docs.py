"""What docs/sources.md says is true."""

import re

from twinlib.fusion import quality
from twinlib.fusion.entries import interpret
from twinlib.fusion.rules import RULES
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.sources.mapped import MappedSource
from twinlib.sources.mapping import Attributes, Clock, Codes, Duration, Entry, FileGroup, Mapping, Unpivot, Value, load_mapping


def page(repo) -> str:
    return (repo / "docs" / "sources.md").read_text(encoding="utf-8")


def test_the_example_is_a_valid_mapping(repo, tmp_path):
    example = re.search(r"<!-- example: tested -->\n```yaml\n(.*?)```", page(repo), re.S)[1]
    path = tmp_path / "example.yaml"
    path.write_text(example, encoding="utf-8")
    entries = interpret([MappedSource(load_mapping(path), "example.yaml", "data")], load_vocabulary())
    assert len(entries) == 7


def test_every_reason_is_documented_in_order_of_precedence(repo):
    listed = re.findall(r"^\| `(\w+)` \|", page(repo).split("<!-- reasons: tested -->")[1], re.M)
    reading = ["malformed_row", "missing_column", "unreadable_file", "not_in_force", "value_absent"]
    assert listed == [*reading, *[r.code for r in RULES]]


def test_every_flag_of_a_sensor_is_documented_and_says_whether_it_gates(repo):
    listed = re.findall(r"^\| `(\w+)` \| (\w*) ?\|", page(repo).split("<!-- flags: tested -->")[1], re.M)
    assert listed[: len(quality.RULES)] == [(r.name, "yes" if r.gates else "") for r in quality.RULES]


def test_every_key_is_documented(repo):
    text = page(repo)
    for model in (Mapping, FileGroup, Unpivot, Clock, Value, Duration, Codes, Attributes, Entry):
        for key in model.model_fields:
            assert re.search(rf"`{key}\b|\b{key}:|\{{{key}\b|`{key}", text), f"{model.__name__}.{key}"


def test_the_table_of_ranges_is_the_vocabulary(repo):
    vocabulary = load_vocabulary()
    text = page(repo).replace("100,000", "100000")
    for name, signal in vocabulary.signals.items():
        assert f"| {name} | {signal.unit} | {signal.plausible.text.removeprefix('from ').replace('1e+05', '100000')} |" in text
    for name, agent in vocabulary.agents.items():
        for kind, suffix in (("dose", ""), ("rate", "/h")):
            if plausible := getattr(agent, kind):
                assert f"| {name} ({kind}) | {agent.unit}{suffix} | {plausible.text.removeprefix('from ')} |" in text
