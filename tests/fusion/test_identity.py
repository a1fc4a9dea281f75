"""Who is the same person: evidence, contradictions, and that neither order nor chance decides."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlib.errors import ConfigError
from twinlib.fusion.identity import Claim, crosswalk, relatives, resolve
from twinlib.sources.forgotten import tombstone
from twinlib.sources.pseudonym import pseudonym


def shared(*people: tuple[int, str], token: str = "t") -> list[Claim]:
    return [Claim(origin, patient, "identifier", token) for origin, patient in people]


def stated(*people: tuple[int, str], person: str = "p") -> list[Claim]:
    return [Claim(origin, patient, "crosswalk", person) for origin, patient in people]


def told(claims) -> dict[tuple[int, str], tuple[str, str, str]]:
    return {(x.origin, x.patient): (x.canonical, x.status, x.reason) for x in resolve(claims)}


def test_an_identifier_joins_people_of_different_sources():
    assert told(shared((1, "b"), (0, "z"))) == {(0, "z"): ("z", "linked", "identifier"), (1, "b"): ("z", "linked", "identifier")}


def test_nobody_is_joined_without_evidence():
    assert told(shared((0, "a"), token="x") + shared((1, "b"), token="y")) == {}


def test_an_identifier_of_two_people_of_one_source_joins_nobody():
    got = told(shared((0, "a"), (1, "b"), (1, "c")))
    assert got == {(o, p): (p, "conflict", "shared_identifier") for o, p in ((0, "a"), (1, "b"), (1, "c"))}


def test_links_that_lead_to_two_people_of_one_source_join_nobody():
    got = told(shared((0, "a"), (1, "b"), token="x") + shared((1, "b"), (0, "c"), token="y"))
    assert got == {(o, p): (p, "conflict", "chain") for o, p in ((0, "a"), (1, "b"), (0, "c"))}


def test_the_crosswalk_may_join_two_ids_of_one_source():
    got = told(stated((0, "b"), (0, "a"), (1, "c")) + shared((1, "c"), (2, "d")))
    assert {p: x[:2] for (_, p), x in got.items()} == {p: ("a", "linked") for p in "abcd"}
    assert got[2, "d"][2] == "identifier" and got[0, "b"][2] == "crosswalk"


def test_an_id_with_two_persons_in_the_crosswalk_is_a_conflict():
    got = told(stated((0, "a"), (1, "b"), person="p") + stated((0, "a"), (1, "c"), person="q"))
    assert got == {(0, "a"): ("a", "conflict", "crosswalk")}


def test_a_conflict_leaves_other_people_alone():
    good = shared((0, "x"), (1, "y"), token="good")
    assert told(good).items() <= told(good + shared((0, "a"), (1, "b"), (1, "c"))).items()


people = st.tuples(st.integers(0, 2), st.sampled_from("abcdefg"))
claims = st.lists(
    st.tuples(people, st.sampled_from(["identifier", "crosswalk"]), st.sampled_from("tuvw")), max_size=14
).map(lambda rows: [Claim(o, f"{p}{o}", kind, token) for (o, p), kind, token in rows])


@given(claims, st.randoms())
def test_order_does_not_matter_and_no_source_has_two_people_of_one_patient(found, chance: random.Random):
    links = resolve(found)
    shuffled = [*found, *found[:2]]
    chance.shuffle(shuffled)
    assert resolve(shuffled) == links
    by_crosswalk = {c.patient for c in found if c.kind == "crosswalk"}
    patients: dict[str, list] = {}
    for x in links:
        if x.status == "conflict":
            assert x.canonical == x.patient or x.patient in by_crosswalk
        patients.setdefault(x.canonical, []).append(x)
    for same in patients.values():
        for origin in range(3):
            assert sum(x.origin == origin and x.patient not in by_crosswalk for x in same) <= 1


class Clinic:
    name, namespace = "clinic", "n"


def test_crosswalk_files_are_read_and_checked(tmp_path):
    path = tmp_path / "ids.csv"
    path.write_text("\ufeffsource,id,person\nclinic,1,x\nclinic, 2 ,x\n", encoding="utf-8")
    got = crosswalk(str(path), [Clinic()], b"key")
    assert [c.patient for c in got] == [pseudonym(b"key", "n", "1"), pseudonym(b"key", "n", "2")]
    assert len({c.token for c in got}) == 1 and "x" not in {c.token for c in got}
    for text, expected in (
        ("a,b\n", "line 1: expected the columns source, id, person"),
        ("source,id,person\nward,1,x\n", "line 2: unknown source 'ward'; expected one of clinic"),
        ("source,id,person\nclinic,,x\n", "line 2: id or person is empty"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=expected):
            crosswalk(str(path), [Clinic()], b"key")
    with pytest.raises(ConfigError, match="cannot be read"):
        crosswalk(str(tmp_path / "none.csv"), [Clinic()], b"key")


def test_who_has_withdrawn_is_gone_under_every_linked_id_and_nobody_else():
    said = [
        Claim(0, "a", "identifier", "1"), Claim(1, "b", "identifier", "1"), Claim(1, "b", "crosswalk", "p"), Claim(2, "c", "crosswalk", "p"),
        Claim(0, "d", "identifier", "2"), Claim(1, "e", "identifier", "2"), Claim(2, "f", "crosswalk", "q"),
    ]
    key = b"k" * 16
    gone = lambda *people: relatives(said, frozenset(tombstone(key, p) for p in people), key)  # noqa: E731
    assert gone("c") == {"a", "b", "c"} and gone("f", "nobody") == {"f"} and gone() == frozenset()
    left = resolve(c for c in said if c.patient not in gone("c"))
    assert {x.patient for x in left} == {"d", "e"}
