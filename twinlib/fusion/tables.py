"""Judged records of whole patients to rows of the tables, each in the order in which its table is stored. Pure functions on Arrow tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twinlib.fusion.arrays import codes, decoded, ranks, with_words
from twinlib.fusion.duplicates import settled
from twinlib.fusion.entries import Entry
from twinlib.fusion.rules import RULES, overruled
from twinlib.fusion.verdicts import CODES, Verdicts
from twinlib.tables.contracts import Table
from twinlib.tables.ordered import AHEAD, Ordered
from twinlib.tables.schemas import EVENTS, EXPOSURES, PATIENTS

FLAGS_OF_CHOICE = ("conflict", "same_instant")  # of what was dropped at an instant


def counts_of(entry: np.ndarray, kept: np.ndarray) -> Counter[tuple[int, str]]:
    """How many are kept and dropped, by number of entry."""
    found: Counter[tuple[int, str]] = Counter()
    for word, some in (("kept", entry[kept]), ("dropped", entry[~kept])):
        different, counts = np.unique(some, return_counts=True)
        found.update({(k, word): n for k, n in zip(different.tolist(), counts.tolist())})
    return found


def lasting(sound: pa.Table, table: Table, entries: Sequence[Entry], again: bool = False) -> tuple[pa.Table, Counter[tuple[int, str]]]:
    """EXPOSURES or EVENTS, with AHEAD, of sound records (judge.JUDGED) of whole patients; and what was kept and dropped."""
    target = {EXPOSURES.name: "exposure", EVENTS.name: "event"}[table.name]
    order, kept, flags = settled(sound, target, entries, again)
    chosen = sound.take(pa.array(order[kept]))
    entry = chosen["entry"].combine_chunks().to_numpy()
    quality = with_words(chosen["quality"], {n: f[kept] for n, f in flags.items()}, FLAGS_OF_CHOICE if again else ())
    named = {
        "patient_id": decoded(chosen["patient_id"]), "start": chosen["utc"], "end": chosen["end"], "amount": chosen["value"], "label": decoded(chosen["label"]),
        "utc_offset_minutes": chosen["utc_offset_minutes"], "file": decoded(chosen["file"]), "line": chosen["line"], "available_at": chosen["available_at"],
        "quality": quality, "source": _named(entries, entry, lambda e: e.meaning.source), "kind": _named(entries, entry, lambda e: e.meaning.kind),
        "agent": _named(entries, entry, lambda e: e.meaning.name), "event": _named(entries, entry, lambda e: e.meaning.name),
    }  # fmt: skip
    rows = pa.table({c.name: named[c.name] for c in table.columns}).sort_by([(k, "ascending") for k in table.key])
    return rows.append_column(AHEAD, pa.array(Ordered(table.key)(rows))), counts_of(sound["entry"].combine_chunks().to_numpy()[order], kept)


def _named(entries: Sequence[Entry], entry: np.ndarray, of: Callable[[Entry], str | None]) -> pa.Array:
    return pa.array([of(e) for e in entries], pa.string()).take(pa.array(entry))


def people(survey: pa.Table, stated: pa.Table | None, entries: Sequence[Entry]) -> tuple[pa.Table, Counter[tuple[int, str]]]:
    """PATIENTS, with AHEAD, of everybody whose records were seen, refused ones included; attributes from the first record that states them.

    survey: (patient_id, entry) of all records; stated: sound records (judge.JUDGED) of attributes.
    """
    patient, ids = codes(survey["patient_id"])
    sources = sorted({e.meaning.source for e in entries})
    of = np.array([sources.index(e.meaning.source) for e in entries])
    known = patient >= 0
    pairs = np.unique(patient[known].astype(np.int64) * len(sources) + of[survey["entry"].combine_chunks().to_numpy()[known]])
    seen: dict[str, list[str]] = {}
    for who, source in zip(*np.divmod(pairs, len(sources))):
        seen.setdefault(ids[who], []).append(sources[source])
    sex, birth, counts = {}, {}, Counter()
    if stated is not None:
        order, kept, _ = settled(stated, "patient", entries)
        counts = counts_of(stated["entry"].combine_chunks().to_numpy()[order], kept)
        origin = np.array([e.origin for e in entries])[stated["entry"].combine_chunks().to_numpy()]
        place = np.lexsort((stated["line"].to_numpy(), ranks(stated["file"]), stated["entry"].to_numpy(), origin))
        first = stated.select(["patient_id", "sex", "birth_date"]).take(pa.array(place))
        for found, name in ((sex, "sex"), (birth, "birth_date")):
            for who, value in zip(decoded(first["patient_id"]).to_pylist(), decoded(first[name]).to_pylist()):
                if value is not None:
                    found.setdefault(who, value)
    some = sorted(seen)
    columns = {"patient_id": some, "sex": [sex.get(p) for p in some], "birth_date": [birth.get(p) for p in some], "sources": [seen[p] for p in some]}
    kinds = (pa.string(), pa.string(), pa.date32(), pa.list_(pa.string()))
    rows = pa.table({name: pa.array(values, kind) for (name, values), kind in zip(columns.items(), kinds)})
    return rows.append_column(AHEAD, pa.array(Ordered(PATIENTS.key)(rows))), counts


def expectations(entries: Sequence[Entry]) -> dict[tuple[int, str], str]:
    """What a record of an entry should have had, by entry and reason."""
    return {(e.number, r.code): r.expected(e) for e in entries for r in RULES if e.meaning.target in r.targets and _applies(r.code, e)}


def _applies(code: str, e: Entry) -> bool:
    return code != "unparsable_offset" or e.meaning.clock.offset_column is not None


def quarantined(
    refused: pa.Table, verdicts: Verdicts, entries: Sequence[Entry], expected: Mapping[tuple[int, str], str]
) -> tuple[pa.Table, Counter[tuple[int, str]]]:
    """QUARANTINE of refused records (reading.REFUSED), which other records may give a reason that comes before their own; and their counts."""
    verdict, _ = verdicts.on(refused)
    entry = refused["entry"].combine_chunks().to_numpy()
    place, own = codes(refused["reason"])
    keys = np.stack([entry, place, verdict.astype(entry.dtype)])
    different, which = np.unique(keys, axis=1, return_inverse=True)
    reasons = [overruled(own[r] if r >= 0 else None, CODES[v]) if v else own[r] for _, r, v in different.T]
    details = [expected.get((int(e), reason)) for (e, _, _), reason in zip(different.T, reasons)]
    take = pa.array(which)
    detail = decoded(refused["detail"]).combine_chunks()
    columns = {
        "source": _named(entries, entry, lambda e: e.meaning.source), "file": decoded(refused["file"]), "line": refused["line"], "part": refused["part"],
        "patient_id": decoded(refused["patient_id"]), "reason": pa.array(reasons, pa.string()).take(take),
        "detail": pc.coalesce(detail, pa.array(details, pa.string()).take(take)), "record": refused["record"],
    }  # fmt: skip
    return pa.table(columns), counts_of(entry, np.ones(len(entry), bool))

