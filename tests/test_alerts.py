from twinlib.alerts import Alert, find, rows
from twinlib.config import AlertConfig


def frames(spark, medians, quarantined=10, statuses=("converged",) * 9 + ("failed",)):
    counts = spark.createDataFrame([("a", 100, quarantined), ("a.malformed", 1, 1), ("b", 0, 0)], "source string, rows_read long, quarantined long")
    twins = spark.createDataFrame([("m", s) for s in (*statuses, "insufficient_data")], "model string, status string")
    parameters = spark.createDataFrame([("m", "k", x) for x in medians], "model string, parameter string, q50 double")
    prior = spark.createDataFrame([("m", "k", "log", 1.0, 0.5)], "model string, parameter string, transform string, median double, sd double")
    return counts, twins, parameters, prior


def test_what_exceeds_its_threshold_is_found_and_nothing_else(spark):
    e = 2.718281828459045
    found = find(*frames(spark, [e, e, e]), AlertConfig(quarantined_share=0.1, failed_fit_share=0.1, prior_drift=1.9))
    assert found == [Alert("prior_drift", "k", 2.0, 1.9), Alert("quarantined_share", "a", 11 / 101, 0.1)]
    assert str(found[0]) == "prior_drift of k is 2, allowed 1.9" and [r[:2] for r in rows("r", found)] == [("r", "prior_drift"), ("r", "quarantined_share")]
    assert not find(*frames(spark, [e, e, e], 9), AlertConfig(quarantined_share=0.1, prior_drift=2.1))
    (alert,) = find(*frames(spark, [1.0], 0, ("failed", "converged")), AlertConfig())
    assert (alert.alert, alert.subject, alert.value) == ("failed_fit_share", "m", 0.5)


def test_a_drift_that_could_be_chance_is_no_alert(spark):
    assert not find(*frames(spark, [20.0, 1.0], 0), AlertConfig(prior_drift=1.0))  # mean 3, standard error 3
