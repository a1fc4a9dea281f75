"""Opening the tables of a run without Spark, in DuckDB."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from pyspark.sql.pandas.types import to_arrow_schema

from twinlib.errors import StorageError
from twinlib.tables.parquet import POINTER, current
from twinlib.tables.schemas import TABLES


def connect(folder: str | Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with one view per table of a run's output folder (or of the `tables` folder in it).

    What no run has written so far is there without rows. The views show the versions that are current now; connect again to see later ones. Only Parquet tables can be
    opened: Delta's need an extension of DuckDB that is not part of it. Raises StorageError.
    """
    root = Path(folder)
    root = root / "tables" if (root / "tables").is_dir() else root
    homes = [p for p in sorted(root.iterdir()) if p.name in TABLES] if root.is_dir() else []
    if any((home / "_delta_log").is_dir() for home in homes):
        raise StorageError(f"{root} holds Delta tables: open them with Spark (twinlib.tables) or the deltalake package")
    versions = {home.name: current(home) for home in homes}
    if not any(versions.values()):
        raise StorageError(f"{root} holds no tables: expected folders such as {root}/twins with a file {POINTER}")
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for name, table in TABLES.items():
        version = versions.get(name)
        if version is None:
            connection.register(name, to_arrow_schema(table.schema, timezone="UTC").empty_table())
        else:
            files = f"{str(version).replace(chr(39), chr(39) * 2)}/**/part-*.parquet"
            stored = set(pq.read_schema(next(version.rglob("part-*.parquet"))).names)  # an older version of twinlib knew fewer columns
            columns = ", ".join(f'"{c.name}"' if c.name in stored else f'NULL AS "{c.name}"' for c in table.columns)
            source = f"read_parquet('{files}', union_by_name = true, hive_partitioning = false)"
            connection.execute(f'CREATE VIEW "{name}" AS SELECT {columns} FROM {source}')
    return connection
