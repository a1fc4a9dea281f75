"""Imports go one way: an import against the layering is a defect."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "twinlib"
BASE = {"units", "errors", "config", "__version__"}
ALLOWED = {  # a folder may import itself, the base and what is named here
    "engine": set(),
    "models": {"engine"},
    "tables": {"session"},
    "sources": {"tables", "fusion"},
    "fusion": {"tables", "sources"},
    "population": {"engine", "models", "tables"},
    "whatif": {"engine", "models", "tables"},
    "synthetic": {"sources"},
    "report": {"engine", "models", "tables", "whatif", "population", "synthetic", "stages"},
}
NO_SPARK = {"engine", "models", "synthetic"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | ({f"{node.module}.{a.name}" for a in node.names} if node.module == "twinlib" else set())
    return found


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_folder_imports_only_what_it_may(folder):
    files = sorted((PACKAGE / folder).rglob("*.py"))
    assert files
    wrong = []
    for path in files:
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "twinlib" and len(parts) > 1 and parts[1] not in BASE | {folder, "job"} | ALLOWED[folder]:
                wrong.append(f"{path.name} imports {name}")
            if parts[0] == "pyspark" and folder in NO_SPARK and path.name != "recovery.py":
                wrong.append(f"{path.name} imports {name}")
    assert not wrong, wrong


def test_only_the_session_builds_a_spark_session():
    builders = [p.name for p in PACKAGE.rglob("*.py") if "SparkSession.builder" in p.read_text()]
    assert builders == ["session.py"]
