"""A table contract: columns with type, unit and meaning, and the key. Everything else about a table is derived."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StructField, StructType

from twinlib.errors import StorageError

PATIENT = "patient_id"


@dataclass(frozen=True)
class Column:
    """One column. `unit` is a UCUM-like text, None where the column is not a quantity; `values` lists allowed texts."""

    name: str
    type: DataType
    meaning: str
    unit: str | None = None
    nullable: bool = True
    values: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Table:
    """One table: a name, what one row means, the key and the columns."""

    name: str
    meaning: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def by_patient(self) -> bool:
        """Rows belong to a patient: stored in buckets of `patient_id`, replaced patient by patient."""
        return any(c.name == PATIENT and not c.nullable for c in self.columns)

    @property
    def schema(self) -> StructType:
        """Spark schema; comment and unit of every column stand in the field's metadata."""
        about = {c.name: {"comment": c.meaning} | ({"unit": c.unit} if c.unit else {}) for c in self.columns}
        return StructType([StructField(c.name, c.type, c.nullable, about[c.name]) for c in self.columns])

    @property
    def rules(self) -> dict[str, str]:
        """What must hold of every row, as name -> condition in Spark SQL: columns that are never null, allowed values."""
        rules = {f"{c.name}_not_null": f"`{c.name}` IS NOT NULL" for c in self.columns if not c.nullable}
        for c in self.columns:
            if c.values:
                allowed = f"`{c.name}` IN ({', '.join(repr(v) for v in c.values)})"
                rules[f"{c.name}_allowed"] = f"`{c.name}` IS NULL OR {allowed}" if c.nullable else allowed
        return rules

    def conform(self, df: DataFrame) -> DataFrame:
        """`df` with exactly this table's columns, in order.

        Raises StorageError that names the missing, unknown or wrongly typed columns.
        """
        have = {f.name: f.dataType for f in df.schema.fields}
        want = {c.name: c.type for c in self.columns}
        problems = [f"missing column {n}" for n in want if n not in have]
        problems += [f"unknown column {n}" for n in have if n not in want]
        problems += [
            f"column {n} is {have[n].simpleString()}, expected {t.simpleString()}"
            for n, t in want.items()
            if n in have and have[n].simpleString() != t.simpleString()
        ]
        if problems:
            raise StorageError(f"table {self.name}: " + "; ".join(problems))
        return df.select(*[F.col(c.name) for c in self.columns])
