"""A pump's rates in U per 5 minutes that are declared as U/h: both are plausible numbers, but not beside the patient's boluses.

Basal insulin is a third to a half of what a person with type 1 diabetes takes (27.7 % +/- 6.9 in adults, Kuroda et al. 2011,
10.2337/dc10-2149; 20.6 % +/- 11 in children with insulin of their own left, 10.1111/j.1399-5448.2008.00375.x; 34 to 63 % in the six pump
users of T1D-UOM). Rates that are twelve times too small leave it at a few per cent. Pumps are set in steps of 0.025 U/h: rates that stand
on such steps are taken at their word.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

PER_HOUR = 12  # steps of five minutes
STEP = 0.025  # U/h
LOWEST = 0.12  # share of basal insulin that is believed
USUAL = (0.2, 0.8)  # share that the rates give when they are per five minutes
FEWEST_RATES, FEWEST_DAYS = 12, 3


def too_small(judged: DataFrame, rates: Sequence[int], doses: Sequence[int]) -> DataFrame:
    """(entry, patient_id, file, unit, contradicted) of basal rates that look like U per 5 minutes, each file on its own.

    judged: sound and refused records with entry, patient_id, file, unit, utc, value, reason, ignored. rates, doses: numbers of the entries
    of basal rates and of boluses. Mean rates stand for their mean over time.
    """
    sound = judged.where(F.col("reason").isNull() & F.col("ignored").isNull())
    on_step = F.abs(F.col("value") / STEP - F.round(F.col("value") / STEP)) < 0.01
    basal = sound.where(F.col("entry").isin(list(rates))).groupBy("entry", "patient_id", "file", "unit").agg(
        F.count(F.lit(1)).alias("rates"), (24 * F.avg("value")).alias("basal"), F.avg(on_step.cast("int")).alias("stepped"))
    bolus = sound.where(F.col("entry").isin(list(doses))).groupBy("patient_id").agg(
        F.countDistinct(F.to_date("utc")).alias("days"), F.sum("value").alias("bolus"))
    daily = F.col("bolus") / F.col("days")
    share = F.col("basal") / (F.col("basal") + daily)
    corrected = PER_HOUR * F.col("basal") / (PER_HOUR * F.col("basal") + daily)
    odd = F.col("stepped") < 0.5
    enough = (F.col("rates") >= FEWEST_RATES) & (F.col("days") >= FEWEST_DAYS)
    wrong = basal.join(bolus, "patient_id", "inner").where(enough & odd & (share < LOWEST) & corrected.between(*USUAL))
    return wrong.select("entry", "patient_id", "file", "unit", F.lit(True).alias("contradicted"))
