"""What every entry of every source means, resolved against the vocabulary: the small table that records are joined with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from twinlib.fusion.units import Converter, converter
from twinlib.fusion.vocabulary import Affine, Agent, Quantity, Range, Vocabulary
from twinlib.sources.records import Meaning, Source

FIXED = ""  # unit text of records whose unit is declared in the mapping


@dataclass(frozen=True)
class Entry:
    """One entry: its number in the run, the number of its source (priority: lower wins), and how its numbers are read."""

    number: int
    origin: int
    meaning: Meaning
    plausible: Range | None = None
    canonical: str = ""
    adds: bool = False
    units: tuple[tuple[str, Affine], ...] = ()  # unit text -> conversion
    alternatives: tuple[Affine, ...] = ()  # of the units that the numbers might be in by mistake


def interpret(sources: Sequence[Source], vocabulary: Vocabulary) -> list[Entry]:
    """All entries in order. Raises ConfigError where a signal, agent, event, kind or unit is unknown."""
    meanings = [(origin, m) for origin, source in enumerate(sources) for m in source.meanings]
    return [_entry(number, origin, m, vocabulary) for number, (origin, m) in enumerate(meanings)]


def _entry(number: int, origin: int, meaning: Meaning, vocabulary: Vocabulary) -> Entry:
    entry = Entry(number, origin, meaning)
    if meaning.target == "observation":
        quantity = vocabulary.signal(meaning.name, meaning.where)
        return _with_units(replace(entry, plausible=quantity.plausible), quantity, vocabulary)
    if meaning.target == "exposure":
        quantity, plausible = vocabulary.agent(meaning.name, meaning.kind, meaning.where)
        return _with_units(replace(entry, plausible=plausible, adds=_adds(quantity, meaning)), quantity, vocabulary)
    if meaning.target == "event":
        vocabulary.event(meaning.name, meaning.where)
        return replace(entry, adds=True)  # two visits that begin at one instant are both true
    return entry


def _adds(agent: Agent, meaning: Meaning) -> bool:
    return meaning.kind == "treatment" or meaning.kind == "dose" and agent.same_instant == "add"


def _with_units(entry: Entry, quantity: Quantity, vocabulary: Vocabulary) -> Entry:
    m = entry.meaning
    convert: Converter = converter(vocabulary, m.name, quantity, m.kind)
    units: dict[str, Affine] = {}
    if m.value.unit_column:
        units |= convert.table()
        units |= {text: convert.of(unit, m.where) for text, unit in m.value.units.items()}
    if m.value.unit:
        units[FIXED] = convert.of(m.value.unit, m.where)
    alternatives = tuple(dict.fromkeys(convert.of(u, m.where) for u in convert.units))
    return replace(entry, canonical=convert.canonical, units=tuple(units.items()), alternatives=alternatives)


_AFFINE = pa.struct([("factor", pa.float64()), ("offset", pa.float64())])
_DESCRIPTION = pa.schema(
    [
        ("entry", pa.int32()),
        ("origin", pa.int32()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("measured", pa.bool_()),
        ("timed", pa.bool_()),
        ("lasting", pa.bool_()),
        ("exposed", pa.bool_()),
        ("person", pa.bool_()),
        ("name", pa.string()),
        ("kind", pa.string()),
        ("adds", pa.bool_()),
        ("low", pa.float64()),
        ("low_open", pa.bool_()),
        ("high", pa.float64()),
        ("duration_seconds", pa.float64()),
        ("alternatives", pa.list_(_AFFINE)),
    ]
)

DESCRIBED = tuple(n for n in _DESCRIPTION.names if n not in ("entry", "alternatives"))  # what judging needs


def _description(e: Entry) -> dict:
    return {
        "entry": e.number,
        "origin": e.origin,
        "source": e.meaning.source,
        "target": e.meaning.target,
        "measured": e.meaning.value is not None,
        "timed": e.meaning.clock is not None,
        "lasting": e.meaning.target in ("exposure", "event"),
        "exposed": e.meaning.target == "exposure",
        "person": e.meaning.target == "patient",
        "name": e.meaning.name,
        "kind": e.meaning.kind,
        "adds": e.adds,
        "duration_seconds": e.meaning.duration_seconds,
        "low": e.plausible and e.plausible.low,
        "low_open": e.plausible and e.plausible.above is not None,
        "high": e.plausible and e.plausible.to,
        "alternatives": [a.model_dump() for a in e.alternatives],
    }


def entry_frame(spark: SparkSession, entries: Sequence[Entry]) -> DataFrame:
    """One row per entry: what is the same for all of its records."""
    return spark.createDataFrame(pa.Table.from_pylist([_description(e) for e in entries], _DESCRIPTION))


def described(spark: SparkSession, df: DataFrame, entries: Sequence[Entry], *names: str) -> DataFrame:
    """`df` with the named columns of its records' entries; of a single entry they are constants, which Spark folds away."""
    if len(entries) > 1:
        return df.join(F.broadcast(entry_frame(spark, entries).select("entry", *names)), "entry", "inner")
    row, kinds = _description(entries[0]), from_arrow_schema(_DESCRIPTION)
    pairs = [F.struct(F.lit(a["factor"]).alias("factor"), F.lit(a["offset"]).alias("offset")) for a in row["alternatives"]]
    row["alternatives"] = F.array(*pairs)
    return df.withColumns({n: F.lit(row[n]).cast(kinds[n].dataType) for n in names})


def converted(spark: SparkSession, df: DataFrame, entries: Sequence[Entry]) -> DataFrame:
    """`df` with `factor` and `shift` of its records' units, null where a unit is unknown."""
    if len(entries) > 1:
        return df.join(F.broadcast(unit_frame(spark, entries)), ["entry", "unit"], "left")

    def of(number: Callable[[Affine], float]) -> Column:
        chain = F
        for text, a in entries[0].units:
            chain = chain.when(F.col("unit") == text, F.lit(number(a)))
        return chain.otherwise(F.lit(None)).cast("double") if entries[0].units else F.lit(None).cast("double")

    return df.withColumns({"factor": of(lambda a: a.factor), "shift": of(lambda a: a.offset)})


def unit_frame(spark: SparkSession, entries: Sequence[Entry]) -> DataFrame:
    """One row per entry and unit text: entry, unit, factor, shift (canonical = factor * value + shift)."""
    schema = pa.schema([("entry", pa.int32()), ("unit", pa.string()), ("factor", pa.float64()), ("shift", pa.float64())])
    rows = [{"entry": e.number, "unit": text, "factor": a.factor, "shift": a.offset} for e in entries for text, a in e.units]
    return spark.createDataFrame(pa.Table.from_pylist(rows, schema))
