"""What was made from what, as OpenLineage run events (https://openlineage.io/spec/2-0-2): JSON lines, a START and a COMPLETE or FAIL per stage of a run.

The lines stand in `lineage/<run id>.jsonl` beside the tables (on an object store: the text data set `_lineage/<run id>`), so that a
collector can pick them up. They hold names, versions, schemas and counts; never rows.
"""

from __future__ import annotations

import json
import os
import uuid
from datetime import datetime
from pathlib import Path

from twinlib import __version__
from twinlib.tables.contracts import Table
from twinlib.tables.storage import Storage, make_folder

PRODUCER = f"urn:twinlib:{__version__}"
SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
_FACETS = "https://openlineage.io/spec/facets"


def event(
    storage: Storage, job: str, run_id: str, stage: str, kind: str, at: datetime, inputs: dict[str, str], outputs: dict[str, str],
    tables: dict[str, Table], counts: dict[str, int], message: str | None = None,
) -> dict:
    """A RunEvent. kind: START, COMPLETE or FAIL; inputs and outputs: table name -> version; message: of a failure."""
    own = uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{stage}")
    parent = {"run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, run_id))}, "job": {"namespace": "twinlib", "name": job}}
    facets = {
        "parent": _facet("1-0-1/ParentRunFacet.json#/$defs/ParentRunFacet") | parent,
        "twinlib_run": {"_producer": PRODUCER, "_schemaURL": f"{SPEC}#/$defs/RunFacet", "runId": run_id, "counts": counts},
    }
    if message is not None:
        facets["errorMessage"] = _facet("1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet") | {
            "message": message, "programmingLanguage": "python"
        }
    return {
        "eventType": kind,
        "eventTime": at.isoformat(),
        "producer": PRODUCER,
        "schemaURL": f"{SPEC}#/$defs/RunEvent",
        "run": {"runId": str(own), "facets": facets},
        "job": {"namespace": "twinlib", "name": f"{job}.{stage}"},
        "inputs": [_dataset(storage, n, v, None) for n, v in sorted(inputs.items())],
        "outputs": [_dataset(storage, n, v, tables[n]) for n, v in sorted(outputs.items())],
    }


def _facet(schema: str) -> dict:
    return {"_producer": PRODUCER, "_schemaURL": f"{_FACETS}/{schema}"}


def _dataset(storage: Storage, name: str, version: str, table: Table | None) -> dict:
    facets = {"version": _facet("1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet") | {"datasetVersion": version}}
    if table is not None:
        fields = [{"name": c.name, "type": c.type.simpleString(), "description": c.meaning} for c in table.columns]
        facets["schema"] = _facet("1-1-1/SchemaDatasetFacet.json#/$defs/SchemaDatasetFacet") | {"fields": fields}
    place = "file" if storage.folder else storage.root.split("://")[0] + "://" + storage.root.split("://")[1].split("/")[0]
    path = str(storage.folder / name) if storage.folder else "/".join(storage.root.split("://")[1].split("/")[1:] + [name])
    return {"namespace": place, "name": path, "facets": facets}


def write(storage: Storage, run_id: str, found: dict) -> None:
    """Add an event to the run's file."""
    line = json.dumps(found, ensure_ascii=False)
    if storage.folder is None:
        text = storage.spark.createDataFrame([(line,)], "value string").coalesce(1)
        text.write.mode("append").text(f"{storage.root.rstrip('/')}/_lineage/{run_id}")
        return
    path = Path(storage.folder).parent / "lineage" / f"{run_id}.jsonl"
    make_folder(path.parent)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
        file.write(line + "\n")
