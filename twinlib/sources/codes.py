"""Codes of health records: which signal, agent or event a coded row is about, as tables that DuckDB joins with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from twinlib.fusion.vocabulary import Vocabulary

# code system of the vocabulary -> its names in FHIR; the first one is the name here
URIS = {
    "loinc": ("http://loinc.org", "urn:oid:2.16.840.1.113883.6.1"),
    "snomed": ("http://snomed.info/sct", "urn:oid:2.16.840.1.113883.6.96"),
    "rxnorm": ("http://www.nlm.nih.gov/research/umls/rxnorm", "urn:oid:2.16.840.1.113883.6.88"),
    "icd10": (
        "http://hl7.org/fhir/sid/icd-10-cm",
        "http://hl7.org/fhir/sid/icd-10",
        "urn:oid:2.16.840.1.113883.6.90",
        "urn:oid:2.16.840.1.113883.6.3",
    ),
    "icd9": ("http://hl7.org/fhir/sid/icd-9-cm", "urn:oid:2.16.840.1.113883.6.103"),
    "atc": ("http://www.whocc.no/atc", "urn:oid:2.16.840.1.113883.6.73"),
    "act": ("http://terminology.hl7.org/CodeSystem/v3-ActCode", "http://hl7.org/fhir/v3/ActCode"),
    "omop": ("omop",),
}
_BELOW = {"icd10": r"\w{0,5}", "icd9": r"\d{0,2}", "atc": r"\w{0,5}"}  # what may follow a code that stands for all below it

_EXACT = pa.schema([("system", pa.string()), ("code", pa.string()), ("entry", pa.int32()), ("own", pa.bool_())])
_PATTERNS = pa.schema([("system", pa.string()), ("pattern", pa.string()), ("entry", pa.int32()), ("own", pa.bool_())])
_WORDS = pa.schema([("pattern", pa.string()), ("entry", pa.int32())])


@dataclass(frozen=True)
class CodeTables:
    """exact (system, code, entry, own), patterns (system, pattern, entry, own), words (pattern, entry); `own` marks one row per code.

    Patterns are matched with the whole code without its dots, words with a part of a name.
    """

    exact: pa.Table
    patterns: pa.Table
    words: pa.Table


def code_tables(entries: Iterable[tuple[int, str]], vocabulary: Vocabulary, concepts: Mapping[str, Iterable[str]]) -> CodeTables:
    """The tables of some entries (number, name of signal, agent or event); `concepts`: further OMOP concept ids by name."""
    exact, patterns, words = [], [], []
    for entry, name in entries:
        systems = vocabulary.codes.get(name, {})
        others = {s: (s,) for s in systems if s not in URIS and s != "names"}  # named by their URI
        for system, uris in (URIS | others).items():
            codes = dict.fromkeys((*systems.get(system, ()), *(concepts.get(name, ()) if system == "omop" else ())))
            for uri in uris:
                own = uri == uris[0]
                if system in _BELOW:
                    found = [re.escape(c.replace(".", "")) + _BELOW[system] for c in codes]
                    patterns += [{"system": uri, "pattern": p, "entry": entry, "own": own} for p in found]
                else:
                    exact += [{"system": uri, "code": c, "entry": entry, "own": own} for c in codes]
        if "names" in systems:
            either = "|".join(re.escape(w) for w in systems["names"])
            words.append({"pattern": rf"\b({either})\b", "entry": entry})
    return CodeTables(*(pa.Table.from_pylist(rows, s) for rows, s in ((exact, _EXACT), (patterns, _PATTERNS), (words, _WORDS))))


# From `parts` (n, part, codings: list of (system, code, loose), words: text) to `found` (n, part, entry, flag).
# A loose coding (no system, or the source's own) counts where no other one is known, and a name where no coding is.
FOUND = """
coded AS (
  SELECT n, part, c.system AS system, clean(c.code) AS code, c.loose OR c.system IS NULL AS loose
  FROM (SELECT n, part, unnest(codings) AS c FROM parts)
),
meant AS (
  SELECT DISTINCT c.system, c.code, k.entry FROM (SELECT DISTINCT system, code FROM coded) c
  JOIN exact k ON c.code = k.code AND (c.system = k.system OR c.system IS NULL AND k.own AND k.system <> 'omop')
  UNION
  SELECT DISTINCT c.system, c.code, k.entry FROM (SELECT DISTINCT system, code FROM coded) c
  JOIN patterns k ON regexp_full_match(replace(c.code, '.', ''), k.pattern) AND (c.system = k.system OR c.system IS NULL AND k.own)
),
hits AS (
  SELECT c.n, c.part, m.entry, bool_and(c.loose) AS loose FROM coded c
  JOIN meant m ON c.code = m.code AND c.system IS NOT DISTINCT FROM m.system GROUP BY ALL
),
named AS (
  SELECT p.n, p.part, m.entry FROM parts p
  JOIN (SELECT DISTINCT t.words, w.entry FROM (SELECT DISTINCT words FROM parts) t JOIN words w ON regexp_matches(t.words, w.pattern, 'i')) m
    ON p.words = m.words
  ANTI JOIN hits h ON p.n = h.n AND p.part = h.part
),
found AS (
  SELECT n, part, entry, CASE WHEN loose THEN 'source_code' END AS flag FROM hits
  WHERE NOT loose OR (n, part) NOT IN (SELECT (n, part) FROM hits WHERE NOT loose)
  UNION ALL
  SELECT DISTINCT n, part, entry, 'by_name' FROM named
)"""

MACROS = (
    # zero-width and no-break spaces get into codes and units by copy and paste
    "CREATE OR REPLACE MACRO clean(t) AS nullif(trim(regexp_replace(t, '[\u200b\u200c\u200d\u2060\ufeff\u00a0]', '', 'g')), '')",
    # identifiers that went through a table of floats: 3025315.0
    r"CREATE OR REPLACE MACRO whole(t) AS regexp_replace(t, '^(\d+)\.0+$', '\1')",
    "CREATE OR REPLACE MACRO flags(a, b, c, d) AS nullif(concat_ws(' ', a, b, c, d), '')",
)
