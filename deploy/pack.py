"""Pack the environment that runs this script, twinlib with it, for the workers of a cluster.

    .venv/bin/python deploy/pack.py out/twinlib-env.zip

    PYSPARK_DRIVER_PYTHON=.venv/bin/python PYSPARK_PYTHON=./environment/bin/python \
        spark-submit --archives out/twinlib-env.zip#environment ... jobs/refresh.py --config my.yaml

What only tests and notebooks need stays out, and pyspark too: a worker has its own. The workers need the same Python at the same path
(venv-pack packs packages, not the interpreter) and the same processor architecture.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import venv_pack

REPO = Path(__file__).resolve().parents[1]
LEFT_OUT = (
    "pyspark", "polars", "_polars*", "deltalake", "debugpy", "IPython", "jupyter*", "nb*", "ipykernel*", "jedi", "parso", "hypothesis*", "zmq*",
    "pyzmq*", "tornado", "_pytest", "pytest*", "matplotlib*", "fontTools", "PIL", "pillow*", "pip", "setuptools", "venv_pack*", "__editable__*",
    "twinlib*",
)


def pack(output: Path) -> Path:
    """Write the archive and return its path. Spark unpacks it on every worker; a zip, because it refuses a tar with links out of the folder,
    as a virtual environment's interpreter is one."""
    output.parent.mkdir(parents=True, exist_ok=True)
    site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    filters = [("exclude", f"{site}/{name}{rest}") for name in LEFT_OUT for rest in ("", "/*")]
    filters += [("exclude", "lib64"), ("exclude", "lib64/*"), ("exclude", "*__pycache__*"), ("exclude", "*/tests/*.py")]
    venv_pack.pack(sys.prefix, str(output), format="zip", force=True, filters=filters)
    with zipfile.ZipFile(output, "a", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((REPO / "twinlib").rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file, f"{site}/twinlib/{file.relative_to(REPO / 'twinlib')}")
    return output


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python deploy/pack.py OUTPUT.zip")
    print(pack(Path(sys.argv[1])))
