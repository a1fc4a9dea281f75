"""A small run of the main job: twelve synthetic patients over a week, some of them with too little data."""

from datetime import datetime
from pathlib import Path

import yaml

from twinlib.stages import Night, Plan

REPO = Path(__file__).resolve().parents[1]
CONFIG = {
    "name": "small",
    "seed": 3,
    "pseudonym_key": {"file": str(REPO / "conf" / "demo.key")},
    "storage": {"buckets": 2},
    "generate": {"patients": 12, "days": 7, "start": "2026-01-05"},
    "sources": [{"mapping": f"conf/mappings/{m}.yaml", "root": r} for m, r in (("patients_csv", "."), ("t1d_uom", "t1d_uom"), ("tidepool_json", "tidepool"))],
    "episodes": {"days": 7},
    "disclosure": {"smallest_cell": 1},
    "simulate": {"scenarios": str(REPO / "conf" / "scenarios.yaml")},
    "subgroups": [{"by": "sex"}],
    "recommend": [{
        "name": "doses", "scenarios": ["bolus_*", "basal_*"], "objective": "tir",
        "safety": [{"outcome": "tbr_54", "above": 1, "probability": 0.05}],
    }],
    "cohorts": [{"name": "everyone"}, {"name": "nobody", "where": "tir > 100"}],
}


def configured(folder: Path, **changes) -> Path:
    """A configuration file for a run in `folder`."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG | changes))
    config["output"] = str(folder)
    if config.get("generate"):
        config["generate"]["root"] = str(folder / "raw")
    for source in config["sources"]:
        source["mapping"] = str(REPO / source["mapping"])
        source["root"] = str(folder / "raw" / source["root"])
    path = folder / "run.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def night(path: Path, spark) -> Night:
    run = Night(Plan.of(path), spark)
    run.run()
    return run


def insert(path: Path, *readings: str) -> None:
    """Readings (day/month/year hour:minute,value) at their places in a T1D-UOM glucose file: appended ones would be a clock that was set back."""
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    when = lambda line: datetime.strptime(line.split(",")[0], "%d/%m/%Y %H:%M")  # noqa: E731
    path.write_text("\n".join([head, *sorted([*lines, *readings], key=when)]) + "\n", encoding="utf-8")
