"""The mapped source without Spark: checks before work, pseudonyms, what a file yields."""

import copy
import hashlib
import json
import os
import stat

import pytest

from tests.sources import mapping_file, told
from tests.sources.test_mapping import GOOD
from twinlib.config import PseudonymConfig
from twinlib.errors import ConfigError, DataError
from twinlib.sources import load_key
from twinlib.sources.files import filesystem, find, glob_pattern
from twinlib.sources.mapped import MappedSource, extract
from twinlib.sources.mapping import load_mapping
from twinlib.sources.pseudonym import pseudonym

KEY = b"0123456789abcdef"


def source(tmp_path, files: dict[str, str], change=lambda group: None) -> MappedSource:
    mapping = copy.deepcopy(GOOD)
    change(mapping["files"][0])
    root = tmp_path / "raw"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return MappedSource(load_mapping(mapping_file(tmp_path, mapping)), "clinic.yaml", str(root))


def extracted(s: MappedSource) -> list[dict]:
    system, _ = filesystem(s.root)
    return told(p for group, files in s.files() for f in files for p in extract(s._layout(group, 0), f, system, KEY, s.mapping.namespace))


def test_pseudonym_is_the_textbook_hmac():
    inner = bytes(b ^ 0x36 for b in KEY.ljust(64, b"\0")) + b"study\x1f2301"
    outer = bytes(b ^ 0x5C for b in KEY.ljust(64, b"\0")) + hashlib.sha256(inner).digest()
    assert pseudonym(KEY, "study", "2301") == hashlib.sha256(outer).hexdigest()[:32]


def test_a_missing_folder_and_a_glob_without_files_are_named(tmp_path):
    with pytest.raises(DataError, match="raw.*cannot be listed"):
        source(tmp_path, {}).check()
    with pytest.raises(DataError, match=r"no file matches \*\.csv"):
        source(tmp_path, {"a.txt": "id,at,mgdl\n"}).check()


def test_an_unknown_column_is_named_with_a_hint(tmp_path):
    with pytest.raises(DataError, match="no file has a column 'mgdl'; did you mean 'mg_dl'"):
        source(tmp_path, {"a.csv": "id,at,mg_dl\n"}).check()


def test_a_file_name_pattern_that_never_fits_is_an_error(tmp_path):
    with pytest.raises(DataError, match="matches none of the 1 file names"):
        source(tmp_path, {"a.csv": "at,mgdl\n"}, lambda g: g.update(patient={"file": r"P(\d+)\.csv"})).check()


def test_a_json_file_without_the_time_key_is_an_error_but_a_sparse_key_is_not(tmp_path):
    def as_json(g):
        g.update(format="json", glob="*.json")
        g["entries"][0].update(when={"type": "cgm"})

    source(tmp_path, {"a.json": '[{"id": "1", "at": "x"}]'}, as_json).check()
    with pytest.raises(DataError, match="'at'"):
        source(tmp_path, {"a.json": '[{"id": "1", "type": "cgm", "time": "x"}]'}, as_json).check()


def test_one_bad_file_among_good_ones_is_data_not_an_error(tmp_path):
    s = source(tmp_path, {"a.csv": "id,at,mgdl\n1,x,2\n", "b.csv": "id,when,mgdl\n1,x,2\n", "c.csv": ""})
    s.check()
    got = extracted(s)
    faults = [(r["file"], r["line"], r["fault"]) for r in got if r["fault"]]
    assert faults == [("b.csv", None, "missing_column"), ("c.csv", None, "unreadable_file")]
    assert sum(r["ignored"] is not None for r in got) == 3  # every file leaves its tally


def test_no_identifier_leaves_the_reading_step(tmp_path):
    files = {"ward/secret-7.csv": "mrn,at,mgdl,note\nsecret-7,t,5,secret-7\nsecret-7,t,5,x,secret-7\n"}
    by_name = source(tmp_path, files, lambda g: g.update(glob="ward/*.csv", patient={"file": r"([^/]+)\.csv$"}))
    by_column = source(
        tmp_path, {"all.csv": files["ward/secret-7.csv"]}, lambda g: g.update(glob="all.csv", patient={"column": "mrn"})
    )
    for s in (by_name, by_column):
        got = extracted(s)
        assert "secret-7" not in json.dumps(got)
        records = [r for r in got if r["record"]]
        assert {r["fault"] for r in records} == {None, "malformed_row"}
        assert all(pseudonym(KEY, "", "secret-7") in r["record"] for r in records)
    assert extracted(by_name)[0]["file"] == f"ward/{pseudonym(KEY, '', 'secret-7')}.csv"


def test_json_records_hide_the_id_wherever_it_fills_a_field(tmp_path):
    text = json.dumps([{"id": 77001, "at": "t", "mgdl": 5, "who": {"id": "77001"}}])
    s = source(tmp_path, {"a.json": text}, lambda g: g.update(format="json", glob="*.json", hide=["who"]))
    record = json.loads(extracted(s)[0]["record"])
    assert record == {"id": pseudonym(KEY, "", "77001"), "at": "t", "mgdl": 5, "who": "(hidden)"}


def test_rows_are_chosen_trimmed_and_counted(tmp_path):
    def change(g):
        g["entries"] = [
            {
                "name": "cgm",
                "when": {"kind": ["cgm", "flash"]},
                "observation": "glucose",
                "value": {"column": "mgdl", "unit": "mg/dL"},
            },
            {
                "name": "meal",
                "when": {"kind": "meal"},
                "optional": True,
                "exposure": "carbohydrate",
                "value": {"column": "mgdl", "unit": "g"},
            },
        ]

    text = "id,at,mgdl,kind\n1, t1 , 5,cgm\n1,t2,NA,flash\n1,t3,,meal\n1,t4,9,meal\n1,t5,9,other\n,,,\n1,t6\n"
    got = extracted(source(tmp_path, {"a.csv": text}, lambda g: (change(g), g.update(missing=["NA"]))))
    records = [(r["entry"], r["line"], r["time"], r["value"], r["fault"]) for r in got if r["ignored"] is None]
    assert sorted(records, key=lambda r: r[1]) == [
        (1, 2, "t1", "5", None),
        (1, 3, "t2", None, None),
        (2, 5, "t4", "9", None),
        (0, 8, None, None, "malformed_row"),
    ]
    assert [r["ignored"] for r in got if r["ignored"] is not None] == [
        2
    ]  # the empty meal and the other kind; nothing but delimiters is no row


def test_globs_stay_within_folders_unless_told(tmp_path):
    assert glob_pattern("*.csv").fullmatch("a.csv") and not glob_pattern("*.csv").fullmatch("x/a.csv")
    assert all(glob_pattern("**/*.csv").fullmatch(p) for p in ("a.csv", "x/y/a.csv"))
    for name in (".hidden/a.csv", "__MACOSX/a.csv", "b.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [f.relative for f in find(str(tmp_path))] == ["b.csv"]


def test_key_is_made_once_private_and_long_enough(tmp_path, monkeypatch):
    path = tmp_path / "new" / "key"
    made = load_key(PseudonymConfig(file=str(path), create=True))
    assert len(made) == 64 and load_key(PseudonymConfig(file=str(path), create=True)) == made
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(path.parent) == ["key"]
    path.write_text("short")
    with pytest.raises(ConfigError, match="holds 5 bytes; expected at least 16") as e:
        load_key(PseudonymConfig(file=str(path)))
    assert "short" not in str(e.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_key(PseudonymConfig(file=str(tmp_path / "none")))
    monkeypatch.delenv("THE_KEY", raising=False)
    with pytest.raises(ConfigError, match="THE_KEY is not set"):
        load_key(PseudonymConfig(env="THE_KEY"))
