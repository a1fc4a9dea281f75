"""Small health records, the same content as OMOP tables and as FHIR resources, with the oddities of real exports."""

import json
from pathlib import Path

from tests.sources import told
from twinlib.config import RunConfig
from twinlib.sources import open_sources
from twinlib.sources.ehr import extract
from twinlib.sources.files import filesystem

KEY = b"0123456789abcdef"
LOINC, SNOMED, RXNORM = "http://loinc.org", "http://snomed.info/sct", "http://www.nlm.nih.gov/research/umls/rxnorm"
UCUM, MRN = "http://unitsofmeasure.org", "urn:hospital:mrn"


def ehr_config(*sources: dict, **more) -> RunConfig:
    settings = {"name": "test", "output": "unused", "pseudonym_key": {"env": "UNUSED"}, "sources": list(sources)}
    return RunConfig.model_validate(settings | more)


def records(source: dict, **more) -> tuple[list[dict], int]:
    """The records of a source without Spark, each with what its entry means, and the number of rows ignored."""
    (opened,) = open_sources(ehr_config(source, **more))
    opened.check()
    system, _ = filesystem(opened.root)
    rows = told(p for t in opened.tables for f in t.files for p in extract(t, f, system, KEY, opened.namespace, 0))
    found = [r | {"meaning": opened.meanings[r["entry"]]} for r in rows if r["ignored"] is None]
    return found, sum(r["ignored"] or 0 for r in rows)


def ndjson(folder: Path, **resources: list[dict | str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in resources.items():
        lines = [r if isinstance(r, str) else json.dumps({"resourceType": name.split("_")[0], **r}, ensure_ascii=False) for r in found]
        (folder / f"{name.replace('_', '.')}.ndjson").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def coding(system: str | None, code: str, display: str | None = None) -> dict:
    return {"coding": [{k: v for k, v in (("system", system), ("code", code), ("display", display)) if v}]}


def lab(patient: str, code: str, value: float | None, unit: str, at: str, **more) -> dict:
    quantity = {} if value is None else {"valueQuantity": {"value": value, "unit": unit, "code": unit, "system": UCUM}}
    return {
        "status": "final", "code": coding(LOINC, code), "subject": {"reference": f"Patient/{patient}", "display": "Jane Doe"},
        "effectiveDateTime": at, **quantity, **more,
    }  # fmt: skip


def table(folder: Path, name: str, text: str) -> None:
    """A CSV file of a table written with blanks between its fields; `-` is an empty one, `_` a blank."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line.split() for line in text.strip().splitlines()]
    cells = [",".join("" if c == "-" else c.replace("_", " ") if k and "_" in c else c for c in line) for k, line in enumerate(lines)]
    (folder / f"{name}.csv").write_text("\n".join(cells) + "\n", encoding="utf-8")
