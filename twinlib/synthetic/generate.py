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
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twinlib.config import GenerateConfig
from twinlib.errors import ConfigError, DataError
from twinlib.synthetic import dirt, exports, life, life_cohort, people, physiology, therapy
from twinlib.synthetic import faults as planting
from twinlib.synthetic import simulate as simulation
from twinlib.synthetic.people import Person, person
from twinlib.synthetic.simulate import simulate
from twinlib.synthetic.therapy import Plan, plan, respond

MANIFEST = "manifest.json"
_MAKERS = (dirt, planting, exports, life, life_cohort, people, physiology, simulation, therapy)  # a change of their code makes the cohort anew
_BLOCK_READINGS = 2_000_000  # bounds the memory of one block of people
_BLOCK_OF_LIFE = 64  # people at once; every minute of their days is held


def _settings(config: GenerateConfig, seed: int) -> dict:
    code = hashlib.sha256(b"".join(Path(m.__file__).read_bytes() for m in _MAKERS) + Path(__file__).read_bytes())
    return {**config.model_dump(mode="json", exclude={"root"}), "seed": seed, "code": code.hexdigest()[:16]}


def _start(config: GenerateConfig) -> date:
    try:
        return date.fromisoformat(config.start)
    except ValueError:
        raise ConfigError(f"generate.start: {config.start!r} is not a date, expected YYYY-MM-DD") from None


def cohort(seed: int, indices: range, start: date, days: int) -> tuple[list[Person], list[Plan]]:
    """People and plans of some indices of the cohort."""
    group = [person(seed, i, start) for i in indices]
    response = respond(np.array([p.parameters for p in group]), np.array([p.weight for p in group]))
    return group, [plan(seed, p, response, k, days) for k, p in enumerate(group)]


def _write(root: Path, file: exports.RawFile, encoding: str = "utf-8", lines: bool = False) -> None:
    path = root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "\n".join([*file.rows, ""]).encode() if lines and file.header is None else exports.text(file)
    path.write_bytes(content if encoding == "utf-8" else content.decode().encode(encoding))


def _write_block(
    root: Path, config: GenerateConfig, seed: int, start: date, indices: range, clocks: dict
) -> tuple[list[Person], list]:
    if config.life:
        group, plans, record = life_cohort.cohort(seed, indices, start, config.days)
    else:
        group, plans = cohort(seed, indices, start, config.days)
        record = simulate(group, plans, config.days, seed)
    planted = []
    for k, (p, its_plan) in enumerate(zip(group, plans)):
        if p.zone not in clocks:
            clocks[p.zone] = exports.Clock(p.zone, start, config.days)
        bolus, mine = record.bolus[record.bolus[:, 0] == k, 1:], record.intake[:, 0] == k
        book = exports.diary(seed, p, its_plan, record.readings[k], bolus, record.intake[mine, 1:], record.meal[mine])
        files = (exports.t1d_uom if p.shape == "t1d_uom" else exports.tidepool)(p, book, clocks[p.zone])
        if config.dirty:
            files, faults = dirt.plant(seed, p, files)
            planted += faults
        if config.faults:
            spoilt, faults = planting.plant(seed, p, files)
            planted += faults
            for one in spoilt:
                _write(root, one.file, one.encoding, lines=True)
            continue
        for file in files:
            _write(root, file)
    return group, planted


def _write_truth(root: Path, names: Sequence[str], everybody: list[Person], planted: list) -> None:
    (root / "truth").mkdir()
    parameters = {
        "patient": [p.id for p in everybody for _ in names],
        "parameter": [*names] * len(everybody),
        "value": np.concatenate([p.parameters for p in everybody]),
    }
    pq.write_table(pa.table(parameters), root / "truth" / "parameters.parquet")
    schema = pa.schema([("file", pa.string()), ("line", pa.int64()), ("fault", pa.string())])
    columns = [pa.array(c, f.type) for c, f in zip(list(zip(*planted)) or [[], [], []], schema)]
    pq.write_table(pa.table(columns, schema=schema), root / "truth" / "planted.parquet")


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
            raise DataError(f"{manifest}: is no manifest of a synthetic cohort; choose another generate.root") from None
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: holds files that are no synthetic cohort; choose another generate.root")

    partial, old = root.with_name(root.name + ".partial"), root.with_name(root.name + ".old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    everybody, planted, clocks = [], [], {}
    block = max(1, min(_BLOCK_OF_LIFE if config.life else 512, _BLOCK_READINGS // (config.days * 288)))
    for first in range(0, config.patients, block):
        some, faults = _write_block(partial, config, seed, start, range(first, min(first + block, config.patients)), clocks)
        everybody += some
        planted += faults
    (partial / "patients.csv").write_bytes(exports.patients_csv(everybody))
    names = life_cohort.PARAMETERS if config.life else [p.name for p in physiology.PARAMETERS]
    _write_truth(partial, names, everybody, planted)
    content = {"settings": settings, "patients": len(everybody), "planted": len(planted)}
    (partial / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
    if root.exists():
        os.rename(root, old)
    os.rename(partial, root)
    shutil.rmtree(old, ignore_errors=True)
    return True
