"""Helpers of the tests of sources and ingest."""

from pathlib import Path

import yaml


def mapping_file(folder: Path, mapping: dict) -> Path:
    path = folder / f"{mapping['name']}.yaml"
    path.write_text(yaml.safe_dump(mapping, sort_keys=False), encoding="utf-8")
    return path
