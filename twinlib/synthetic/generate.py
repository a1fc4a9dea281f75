"""Writing the synthetic cohort: raw files in real export shapes, and the truth beside them.

    root/patients.csv                                        patient, sex, birth_date, body_weight_kg, weighed_on
    root/t1d_uom/Glucose Data/UoMGlucose<id>.csv             and Basal, Bolus, Nutrition as in T1D-UOM
    root/tidepool/<id>.json                                  Tidepool uploads
    root/truth/parameters.parquet                            patient, parameter, value
    root/truth/planted.parquet                               file, line, fault
    root/manifest.json                                       settings; written last
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twinlib.config import GenerateConfig
from twinlib.errors import ConfigError, DataError
from twinlib.synthetic import dirt, exports, physiology
from twinlib.synthetic.people import Person, person
from twinlib.synthetic.simulate import simulate
from twinlib.synthetic.therapy import Plan, plan, respond

MANIFEST = "manifest.json"
_BLOCK_READINGS = 2_000_000  # bounds the memory of one block of people


def _settings(config: GenerateConfig, seed: int) -> dict:
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))))
    return {**config.model_dump(mode="json", exclude={"root"}), "seed": seed, "code": code.hexdigest()[:16]}


def _start(config: GenerateConfig) -> date:
    try:
        return date.fromisoformat(config.start)
    except ValueError:
        raise ConfigError(f"generate.start: {config.start!r} is not a date, expected YYYY-MM-DD") from None


def cohort(seed: int, indices: range, start: date, days: int) -> tuple[list[Person], list[Plan]]:
    """People and plans of some indices of the cohort."""
    people = [person(seed, i, start) for i in indices]
    response = respond(np.array([p.parameters for p in people]), np.array([p.weight for p in people]))
    return people, [plan(seed, p, response, k, days) for k, p in enumerate(people)]


def _write(root: Path, file: exports.RawFile) -> None:
    path = root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(exports.text(file))


def _write_block(root: Path, config: GenerateConfig, seed: int, start: date, indices: range, clocks: dict) -> tuple[list[Person], list]:
    people, plans = cohort(seed, indices, start, config.days)
    record = simulate(people, plans, config.days, seed)
    planted = []
    for k, (p, its_plan) in enumerate(zip(people, plans)):
        if p.zone not in clocks:
            clocks[p.zone] = exports.Clock(p.zone, start, config.days)
        mine = record.intake[:, 0] == k
        book = exports.diary(
            seed, p, its_plan, record.readings[k], record.bolus[record.bolus[:, 0] == k, 1:], record.intake[mine, 1:], record.meal[mine]
        )
        files = (exports.t1d_uom if p.shape == "t1d_uom" else exports.tidepool)(p, book, clocks[p.zone])
        if config.dirty:
            files, faults = dirt.plant(seed, p, files)
            planted += faults
        for file in files:
            _write(root, file)
    return people, planted


def _write_truth(root: Path, people: list[Person], planted: list) -> None:
    (root / "truth").mkdir()
    names = [p.name for p in physiology.PARAMETERS]
    parameters = {
        "patient": [p.id for p in people for _ in names],
        "parameter": names * len(people),
        "value": np.concatenate([p.parameters for p in people]),
    }
    pq.write_table(pa.table(parameters), root / "truth" / "parameters.parquet")
    schema = pa.schema([("file", pa.string()), ("line", pa.int64()), ("fault", pa.string())])
    columns = list(zip(*planted)) or [[], [], []]
    pq.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, schema)], schema=schema), root / "truth" / "planted.parquet")


def generate(config: GenerateConfig, seed: int) -> bool:
    """Write the cohort under `config.root` unless it is there with the same settings. Returns whether it was written.

    The files are built beside the root and moved into place as a whole. Raises ConfigError for a bad start date, DataError
    where the root holds files that this function did not write.
    """
    start, root, settings = _start(config), Path(config.root), _settings(config, seed)
    manifest = root / MANIFEST
    if manifest.is_file():
        try:
            if json.loads(manifest.read_text()).get("settings") == settings:
                return False
        except (ValueError, AttributeError):
            raise DataError(f"{manifest}: is not a manifest of a synthetic cohort; remove it or choose another generate.root") from None
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: holds files that are no synthetic cohort; choose another generate.root")

    partial, old = root.with_name(root.name + ".partial"), root.with_name(root.name + ".old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    people, planted, clocks = [], [], {}
    block = max(1, min(512, _BLOCK_READINGS // (config.days * 288)))
    for first in range(0, config.patients, block):
        some, faults = _write_block(partial, config, seed, start, range(first, min(first + block, config.patients)), clocks)
        people += some
        planted += faults
    (partial / "patients.csv").write_bytes(exports.patients_csv(people))
    _write_truth(partial, people, planted)
    (partial / MANIFEST).write_text(json.dumps({"settings": settings, "patients": len(people), "planted": len(planted)}, indent=1) + "\n")
    if root.exists():
        os.rename(root, old)
    os.rename(partial, root)
    shutil.rmtree(old, ignore_errors=True)
    return True
