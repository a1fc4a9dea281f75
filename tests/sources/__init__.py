"""Helpers of the tests of sources and ingest."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml

from twinlib.sources.records import RECORDS, Piece, Tally


def mapping_file(folder: Path, mapping: dict) -> Path:
    path = folder / f"{mapping['name']}.yaml"
    path.write_text(yaml.safe_dump(mapping, sort_keys=False), encoding="utf-8")
    return path


def told(pieces: Iterable[Piece | Tally]) -> list[dict]:
    """The records as dicts of RECORDS with entry, file, record and ignored; a tally has `ignored` only."""
    rows = []
    for p in pieces:
        if isinstance(p, Tally):
            rows.append({**dict.fromkeys([*RECORDS.names, "record"]), "entry": p.entry, "file": p.file, "ignored": p.ignored})
            continue
        columns = {n: p.columns[n].to_pylist() if n in p.columns else [None] * len(p) for n in RECORDS.names}
        columns["record"] = p.text(np.arange(len(p))).to_pylist()
        rows += [{**dict(zip(columns, row)), "entry": p.entry, "file": p.file, "ignored": None} for row in zip(*columns.values())]
    return rows
