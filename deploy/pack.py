"""Pack the environment that runs this script, twinlib with it, for the workers of a cluster.

    .venv/bin/python deploy/pack.py out/twinlib-env.tar

    PYSPARK_DRIVER_PYTHON=.venv/bin/python PYSPARK_PYTHON=./environment/bin/python \
        spark-submit --archives out/twinlib-env.tar#environment ... jobs/refresh.py --config my.yaml

What only tests and notebooks need stays out, and pyspark too: a worker has its own. The workers need the same Python at the same path
(venv-pack packs packages, not the interpreter) and the same processor architecture.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import venv_pack

REPO = Path(__file__).resolve().parents[1]
LEFT_OUT = (
    "pyspark", "polars", "_polars*", "deltalake", "debugpy", "IPython", "jupyter*", "nb*", "ipykernel*", "jedi", "parso", "hypothesis*", "zmq*",
    "pyzmq*", "tornado", "_pytest", "pytest*", "matplotlib*", "fontTools", "PIL", "pillow*", "pip", "setuptools", "venv_pack*", "__editable__*",
    "twinlib*",
)


def pack(output: Path) -> Path:
    """Write the archive (tar; Spark unpacks it on every worker) and return its path."""
    output.parent.mkdir(parents=True, exist_ok=True)
    site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    filters = [("exclude", f"{site}/{name}{rest}") for name in LEFT_OUT for rest in ("", "/*")]
    filters += [("exclude", "*__pycache__*"), ("exclude", "*/tests/*.py")]
    venv_pack.pack(sys.prefix, str(output), format="tar", force=True, filters=filters)
    with tarfile.open(output, "a") as archive:
        archive.add(REPO / "twinlib", f"{site}/twinlib", filter=lambda f: None if "__pycache__" in f.name else f)
    return output


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python deploy/pack.py OUTPUT.tar")
    print(pack(Path(sys.argv[1])))
