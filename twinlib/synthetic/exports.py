"""Raw files in the shapes of two real exports: T1D-UOM (CSV folders, local times) and Tidepool (JSON upload, UTC and offset)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np

from twinlib.synthetic.people import GAPS, Person, stream
from twinlib.synthetic.simulate import STEP
from twinlib.synthetic.therapy import DAY, Plan

MMOL = 18.0156  # mg/dL of glucose per mmol/L


class Clock:
    """Texts of the instants of a record by minute from the first local midnight; one day before it is included."""

    def __init__(self, zone: str, start: date, days: int):
        here = ZoneInfo(zone)
        self.start = datetime(start.year, start.month, start.day, tzinfo=here).astimezone(timezone.utc)
        instants = [self.start + timedelta(minutes=m) for m in range(-DAY, (days + 1) * DAY)]
        locals_ = [x.astimezone(here) for x in instants]
        self._utc = [f"{x:%Y-%m-%dT%H:%M:00.000Z}" for x in instants]
        self._local = [f"{x:%d/%m/%Y %H:%M}" for x in locals_]
        self._offset = [int(x.utcoffset().total_seconds() // 60) for x in locals_]

    def local(self, minute: int) -> str:
        return self._local[minute + DAY]

    def utc(self, minute: int) -> str:
        return self._utc[minute + DAY]

    def offset(self, minute: int) -> int:
        return self._offset[minute + DAY]


@dataclass(frozen=True)
class Diary:
    """One person's record, as far as it is exported: lists of (minute, value) in order of time."""

    glucose: list[tuple[int, float]]  # mg/dL
    rates: list[tuple[int, float, int]]  # minute, U/h, minutes until the next rate
    long_acting: list[tuple[int, float]]  # U
    bolus: list[tuple[int, float]]  # U
    carbohydrate: list[tuple[int, float, str]]  # minute, g, meal

    @property
    def empty(self) -> bool:
        return not (self.glucose or self.rates or self.long_acting or self.bolus or self.carbohydrate)


@dataclass(frozen=True)
class RawFile:
    """One file to write; `rows` are texts without line ends."""

    path: str
    kind: str  # glucose | basal | bolus | nutrition | tidepool
    header: str | None
    rows: list[str]
    bom: bool = False


def diary(
    seed: int, person: Person, plan: Plan, readings: np.ndarray, bolus: np.ndarray, intake: np.ndarray, meal: np.ndarray
) -> Diary:
    """What of the person's record reaches the export: readings lost in gaps, and what the special people lack.

    readings (days * 288,) mg/dL; bolus and intake (events, 2) minute and amount; meal (events,) as in Record.
    """
    rng, n = stream(seed, person.index, GAPS), len(readings)
    there, lose = np.ones(n, bool), rng.uniform(0.01, 0.05) * n
    while n - there.sum() < lose:
        at = rng.integers(n)
        there[at : at + rng.integers(3, 36)] = False
    if person.special == "single_reading":
        there = np.arange(n) == n // 2
    glucose = [(int(k) * STEP, float(readings[k])) for k in np.flatnonzero(there)]
    days = n * STEP // DAY
    starts = [(day * DAY + m, r) for day in range(days) for m, r in plan.rates]
    rates = [(m, r, after - m) for (m, r), after in zip(starts, [m for m, _ in starts[1:]] + [days * DAY])]
    long_acting = [(int(m), float(u)) for m, u in zip(plan.long_minutes, plan.long_units) if -DAY < m < days * DAY]
    doses = [(int(m), float(u)) for m, u in bolus]
    eaten = [(int(m), float(g), plan.meal_labels[j] if j >= 0 else "Correction") for (m, g), j in zip(intake, meal)]
    if person.special == "no_records":
        return Diary([], [], [], [], [])
    if person.special == "cgm_only":
        return Diary(glucose, [], [], [], [])
    if person.special == "no_insulin":
        return Diary(glucose, [], [], [], eaten)
    return Diary(glucose, rates, long_acting, doses, eaten)


def t1d_uom(person: Person, diary: Diary, clock: Clock) -> list[RawFile]:
    """Up to four CSV files per person; glucose in mmol/L with one decimal, times local, day first, without offset."""
    local = clock.local
    tail = ",," if person.index % 8 == 2 else ""  # some real files end their lines with empty columns
    basal = [(m, f"{local(m)},{r:g},R{tail}") for m, r, _ in diary.rates]
    basal += [(m, f"{local(m)},{u:g},L{tail}") for m, u in diary.long_acting]
    kinds = (
        ("glucose", "Glucose Data/UoMGlucose", "bg_ts,value", [f"{local(m)},{round(v / MMOL, 1):g}" for m, v in diary.glucose]),
        ("basal", "Insulin Data/Basal Data/UoMBasal", f"basal_ts,basal_dose,insulin_kind{tail}",
         [text for _, text in sorted(basal)]),
        ("bolus", "Insulin Data/Bolus Data/UoMBolus", "bolus_ts,bolus_dose", [f"{local(m)},{u:g}" for m, u in diary.bolus]),
        ("nutrition", "Nutrition Data/UoMNutrition", "meal_ts,meal_type,meal_tag,carbs_g,prot_g,fat_g,fibre_g",
         [f"{local(m)},{label},,{g:g},,," for m, g, label in diary.carbohydrate]),
    )
    return [
        RawFile(f"t1d_uom/{stem}{person.id}.csv", kind, header, rows, bom=kind != "glucose" and (person.index // 2 + k) % 3 == 0)
        for k, (kind, stem, header, rows) in enumerate(kinds)
        if rows
    ]


def tidepool(person: Person, diary: Diary, clock: Clock) -> list[RawFile]:
    """One JSON upload per person; glucose in mmol/L with five decimals, times UTC with `timezoneOffset` beside."""

    def stamp(m: int) -> str:
        return f'"time":"{clock.utc(m)}","timezoneOffset":{clock.offset(m)}'

    head = '"type":"basal","deliveryType":"scheduled"'
    rows = [f'{{{head},{stamp(m)},"rate":{r:g},"duration":{d * 60000}}}' for m, r, d in diary.rates]
    rows += [f'{{"type":"bolus","subType":"normal",{stamp(m)},"normal":{u:g}}}' for m, u in diary.bolus]
    rows += [f'{{"type":"wizard","units":"mmol/L",{stamp(m)},"carbInput":{g:g}}}' for m, g, _ in diary.carbohydrate]
    rows += [f'{{"type":"cbg","units":"mmol/L",{stamp(m)},"value":{round(v / MMOL, 5)}}}' for m, v in diary.glucose]
    return [RawFile(f"tidepool/{person.id}.json", "tidepool", None, rows)] if rows else []


def text(file: RawFile) -> bytes:
    """The file's bytes: CSV with CRLF line ends, or a JSON array with one record per line."""
    if file.header is None:
        return ("[\n" + ",\n".join(file.rows) + "\n]\n").encode()
    return ("\ufeff" if file.bom else "").encode() + "".join(f"{row}\r\n" for row in [file.header, *file.rows]).encode()


def patients_csv(people: list[Person]) -> bytes:
    """The register of everybody."""
    rows = [f"{p.id},{p.sex},{p.birth_date},{p.weight:g},{p.weighed_on}" for p in people]
    return "\n".join(["patient,sex,birth_date,body_weight_kg,weighed_on", *rows, ""]).encode()
