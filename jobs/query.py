"""Query the tables of a run in SQL, without Spark.

    python jobs/query.py out/demo "SELECT status, count(*) FROM twins GROUP BY 1"
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import duckdb
import typer
from rich.console import Console
from rich.table import Table

from twinlib.errors import TwinlibError
from twinlib.tables.query import connect


def main(
    folder: Annotated[Path, typer.Argument(help="output folder of a run")],
    sql: Annotated[str, typer.Argument(help="query, in DuckDB's SQL")] = "SHOW TABLES",
    rows: Annotated[int, typer.Option(min=1, help="largest number of rows to print")] = 50,
):
    """Print the result of a query over the tables of a run."""
    try:
        result = connect(folder).execute(sql)
        found = result.fetchmany(rows + 1)
    except (TwinlibError, duckdb.Error) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(getattr(e, "exit_code", 2)) from None
    table = Table(*(column[0] for column in result.description))
    for row in found[:rows]:
        table.add_row(*("" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value) for value in row))
    console = Console()
    console.print(table)
    if len(found) > rows:
        console.print(f"only the first {rows} rows: --rows shows more")


if __name__ == "__main__":
    typer.run(main)
