"""The landing zone: however files arrive, and whatever is repeated, the tables are those of one batch over all of them."""

import shutil

import pytest

from tests.small import configured
from tests.sources import mapping_file
from twinlib.follow import Landing
from twinlib.stages import Night, Plan
from twinlib.tables import schemas

TABLES = (schemas.OBSERVATIONS, schemas.EXPOSURES, schemas.QUARANTINE, schemas.PATIENTS, schemas.INGEST_COUNTS)
MAPPING = {
    "name": "feed",
    "files": [
        {
            "name": "cgm", "glob": "**/cgm*.csv", "format": "csv", "patient": {"column": "who"}, "time": {"column": "at", "zone": "Europe/London"},
            "entries": [{"observation": "glucose", "value": {"column": "v", "unit_column": "unit"}}],
        },
        {
            "name": "diary", "glob": "**/diary*.csv", "format": "csv", "patient": {"file": r"diary-(\w+?)-"}, "time": {"column": "at", "zone": "UTC"},
            "entries": [
                {"name": "food", "when": {"what": "food"}, "exposure": "carbohydrate", "value": {"column": "v", "unit": "g"}, "label": "note"},
                {"name": "rate", "when": {"what": "rate"}, "exposure": "insulin_basal", "kind": "rate", "value": {"column": "v", "unit": "U/h"}},
            ],
        },
        {"name": "people", "glob": "**/people*.csv", "format": "csv", "patient": {"column": "who"}, "entries": [{"patient": {"sex": "sex"}}]},
    ],
}  # fmt: skip


def cgm(*rows: tuple[str, str, object], unit="mg/dL") -> str:
    return "who,at,v,unit\n" + "".join(f"{who},2024-05-01 {at},{v},{unit}\n" for who, at, v in rows)


def diary(*rows: str) -> str:
    return "what,at,v,note\n" + "".join(f"{r}\n" for r in rows)


# in order of arrival: b after a although it sorts before, late readings, the same file again under another name, foods of one instant in
# two files, a winner that comes last, a file in the wrong unit between good ones, and a register that states what another denies
FILES = [
    {"a/cgm-2.csv": cgm(("p", "10:00", 100), ("p", "10:05", 105), ("q", "10:00", 90)), "b/diary-p-2.csv": diary("food,2024-05-01 09:00,30,Lunch")},
    {
        "a/cgm-1.csv": cgm(("p", "10:00", 111), ("p", "09:55", 99), ("q", "09:00", 9999)),
        "b/diary-p-1.csv": diary("food,2024-05-01 09:00,20,Lunch", "nap,2024-05-01 09:00,,", "rate,2024-05-01 08:00,0.5,", "rate,2024-05-01 08:00,0.7,"),
        "people-2.csv": "who,sex\np,female\n",
    },
    {"a/cgm-3.csv": cgm(*[("p", f"11:{k:02}", 100 + k) for k in range(0, 30, 5)], unit="mmol/L"), "c/cgm-2.csv": cgm(("p", "10:00", 100), ("r", "10:00", 90))},
    {"people-1.csv": "who,sex\np,male\nr,other\n", "b/diary-p-3.csv": diary("food,2024-05-01 09:00,30,Lunch", "rate,2024-05-01 08:00,0.9,"), "a/other.txt": "x"},
]  # fmt: skip


def put(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def landing(spark, tmp_path):
    (tmp_path / "raw").mkdir()
    mapping = mapping_file(tmp_path, MAPPING)
    path = configured(tmp_path / "run", generate=None, sources=[{"mapping": str(mapping), "root": "."}])
    shutil.rmtree(tmp_path / "run" / "raw", ignore_errors=True)
    (tmp_path / "run" / "raw").mkdir()
    night = Night(Plan.of(path, landing=True), spark)
    return night, Landing(spark, night.storage, night.config), tmp_path / "run" / "raw"


def content(night) -> dict[str, list]:
    return {t.name: sorted(map(repr, night.storage.read(t).collect())) for t in TABLES}


@pytest.mark.slow
def test_followed_files_give_the_tables_of_one_batch(spark, landing, tmp_path):
    night, zone, root = landing
    for files in FILES:
        put(root, files)
        zone.start().awaitTermination()
    followed = content(night)
    batches = {r.batch for r in night.storage.read(schemas.LANDINGS).collect()}
    assert batches == {0, 1, 2, 3}

    with night.storage.writer():
        night.ingest()
    whole = content(night)
    assert followed == whole
    assert len(whole["observations"]) == 5 and len(whole["quarantine"]) == 1 + 6

    # a batch that is repeated after a crash, also under a checkpoint that was lost, changes nothing
    everything = {0: {name for files in FILES for name in files}}
    before = content(night), sorted(map(repr, night.storage.read(schemas.LANDINGS).collect()))
    stream = night.storage.read(schemas.LANDINGS).first().stream
    assert not zone.take({0: set(FILES[1])}, stream, 1)
    assert zone.take(everything, "another", 0)
    assert (content(night), sorted(map(repr, night.storage.read(schemas.LANDINGS).collect()))) == before
