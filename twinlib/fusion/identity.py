"""One person, one patient: ids of several sources are joined by a crosswalk and by identifiers that sources share.

Evidence that contradicts itself joins nobody and is recorded: an identifier that two people of one source have, links that lead from one
person of a source to another one of the same source, and an id that the crosswalk gives to two persons. Two ids of one source are one
person only where the crosswalk says so.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from twinlib.config import IdentityConfig
from twinlib.errors import ConfigError
from twinlib.sources.forgotten import tombstone
from twinlib.sources.pseudonym import pseudonym, system_mark
from twinlib.sources.records import Source
from twinlib.tables.schemas import IDENTITIES


@dataclass(frozen=True)
class Claim:
    """A person (pseudonym) of a source (its number) has a token: an identifier, or a person of the crosswalk."""

    origin: int
    patient: str
    kind: Literal["identifier", "crosswalk"]
    token: str


@dataclass(frozen=True)
class Link:
    """A person of a source, the patient that it is, and why."""

    origin: int
    patient: str
    canonical: str
    status: Literal["linked", "conflict"]
    reason: str


def resolve(claims: Iterable[Claim]) -> list[Link]:
    """Who is the same person, by the claims; nothing depends on their order.

    The patient's pseudonym is that of the source that stands first, and of several there the one that sorts first.
    """
    claims = sorted(set(claims), key=lambda c: (c.origin, c.patient, c.kind, c.token))
    origins: dict[str, set[int]] = defaultdict(set)
    by_token: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    persons: dict[str, set[str]] = defaultdict(set)
    for c in claims:
        origins[c.patient].add(c.origin)
        by_token[c.kind, c.token].append(c)
        if c.kind == "crosswalk":
            persons[c.patient].add(c.token)
    conflicts: dict[str, str] = {p: "crosswalk" for p, found in persons.items() if len(found) > 1}
    stated = [[c.patient for c in some if c.patient not in conflicts] for (kind, _), some in by_token.items() if kind == "crosswalk"]
    first = _groups(origins, stated)
    identifiers = [some for (kind, _), some in by_token.items() if kind == "identifier"]
    for some in identifiers:
        if _contradicts([(c.origin, first[c.patient]) for c in some]):
            conflicts |= {c.patient: "shared_identifier" for c in some}
    shared = [[c.patient for c in some if c.patient not in conflicts] for some in identifiers]
    whole = _groups(origins, [*stated, *shared])
    members: dict[int, list[str]] = defaultdict(list)
    for patient in origins:
        members[whole[patient]].append(patient)
    links = []
    for group in members.values():
        if _contradicts([(o, first[p]) for p in group for o in origins[p]]):
            conflicts |= {p: conflicts.get(p, "chain") for p in group}
            parts: dict[int, list[str]] = defaultdict(list)
            for patient in group:
                parts[first[patient]].append(patient)
        else:
            parts = {0: group}
        for part in parts.values():
            canonical = min(part, key=lambda p: (min(origins[p]), p))
            for patient in part:
                if patient in conflicts:
                    links += [Link(o, patient, canonical, "conflict", conflicts[patient]) for o in origins[patient]]
                elif len(part) > 1:
                    reason = "crosswalk" if sum(first[p] == first[patient] for p in part) > 1 else "identifier"
                    links += [Link(o, patient, canonical, "linked", reason) for o in origins[patient]]
    return sorted(links, key=lambda x: (x.origin, x.patient))


def _groups(patients: Iterable[str], joined: Sequence[Sequence[str]]) -> dict[str, int]:
    """Number of the group of each patient when all of each list are one."""
    number = {p: k for k, p in enumerate(patients)}
    pairs = [(number[some[0]], number[p]) for some in joined if some for p in some[1:]]
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(number), len(number)))
    labels = connected_components(graph, directed=False)[1] if number else []
    return {p: int(labels[k]) for p, k in number.items()}


def _contradicts(people: Iterable[tuple[int, int]]) -> bool:
    """Whether two different people (origin, group) are of one source."""
    groups: dict[int, set[int]] = defaultdict(set)
    for origin, group in people:
        groups[origin].add(group)
    return any(len(g) > 1 for g in groups.values())


def crosswalk(path: str, sources: Sequence[Source], key: bytes) -> list[Claim]:
    """The claims of a CSV file with the columns source, id and person. Raises ConfigError that names the line."""
    numbers = {s.name: k for k, s in enumerate(sources)}
    claims = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            rows = csv.DictReader(f)
            if not {"source", "id", "person"} <= set(rows.fieldnames or ()):
                raise ConfigError(f"{path}: line 1: expected the columns source, id, person")
            for row in rows:
                source, raw, person = ((row[c] or "").strip() for c in ("source", "id", "person"))
                if source not in numbers:
                    raise ConfigError(f"{path}: line {rows.line_num}: unknown source {source!r}; expected one of {', '.join(numbers)}")
                if not raw or not person:
                    raise ConfigError(f"{path}: line {rows.line_num}: id or person is empty")
                origin = numbers[source]
                patient = pseudonym(key, sources[origin].namespace, raw)
                claims.append(Claim(origin, patient, "crosswalk", pseudonym(key, "crosswalk", person)))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read ({type(e).__name__})") from None
    return claims


def claims(config: IdentityConfig, judged: DataFrame, sources: Sequence[Source], origins: Sequence[int], key: bytes) -> list[Claim]:
    """What is claimed of all people in `judged` (columns entry, patient_id, identifiers). origins: number of the source, by entry.

    Only identifiers that several people have leave Spark.
    """
    found = crosswalk(config.crosswalk, sources, key) if config.crosswalk else []
    if config.systems:
        marks = [system_mark(key, s) for s in config.systems]
        stated = (
            judged.filter(F.col("identifiers").isNotNull() & F.col("patient_id").isNotNull())
            .select("entry", "patient_id", F.explode(F.split("identifiers", " ")).alias("token"))
            .filter(F.substring_index("token", ":", 1).isin(marks))
            .distinct()
        )
        several = stated.groupBy("token").agg(F.collect_set(F.struct("entry", "patient_id")).alias("people"))
        several = several.filter(F.size(F.array_distinct("people.patient_id")) > 1)
        found += [
            Claim(origins[p.entry], p.patient_id, "identifier", row.token) for row in several.toLocalIterator() for p in row.people
        ]
    return found


def relatives(stated: Sequence[Claim], tombstones: frozenset[str], key: bytes) -> frozenset[str]:
    """The pseudonyms that are, by all that is claimed, one person with a patient under a tombstone: that patient's own and all others.

    Who withdraws is gone under every id, also one that came or was linked later.
    """
    if not tombstones:
        return frozenset()
    known = {c.patient for c in stated}
    canonical = {p: p for p in known} | {x.patient: x.canonical for x in resolve(stated)}
    gone = {canonical[p] for p in known if tombstone(key, p) in tombstones}
    return frozenset(p for p in known if canonical[p] in gone)


def identities(spark: SparkSession, found: Sequence[Link], sources: Sequence[Source]) -> DataFrame:
    """IDENTITIES of the links."""
    rows = [(x.canonical, x.patient, sources[x.origin].name, x.status, x.reason) for x in found]
    return spark.createDataFrame(rows, IDENTITIES.schema)
