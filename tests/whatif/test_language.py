"""The cohort filter: what it accepts, how Spark reads it, and the message for everything else."""

import pytest

from twinlib.errors import ConfigError
from twinlib.whatif.language import NUMBER, TEXT, compiled

COLUMNS = {"age_years": NUMBER, "sex": TEXT, "tir": NUMBER}


@pytest.mark.parametrize(
    "where, message",
    [
        ("age_years >= 18 and", "c: syntax error at line 1, column 17 of the filter, near 'and'"),
        ("sex = 'female'\n and and tir > 1", "syntax error at line 2, column 6 of the filter, near 'and'"),
        ("tir > 1)", "syntax error at line 1, column 8"),
        ("sex = 'female", r"syntax error: a quoted text .* \(the last quote stands at character 7\)"),
        ("", "expected one condition, found none; use `true` for everyone"),
        ("tir > 1; drop table twins", "expected one condition, found 2"),
        ("tir > 1 and foo < 3", "unknown column foo at line 1, column 13; known are age_years, sex, tir"),
        ("t.tir > 1", "unknown column t.tir"),
        ("patient_id = 'x'", "unknown column patient_id"),
        ("tir >= (select 1)", "a subquery is not allowed"),
        ("tir in (select 1)", "a subquery is not allowed"),
        ("exists(select 1)", "a subquery is not allowed"),
        ("tir > 1 union select 1", "a subquery is not allowed"),
        ("select 1", "a subquery is not allowed"),
        ("java_method('a', 'b')", "the function java_method is not allowed"),
        ("rand() > 0.5", "the function rand is not allowed"),
        ("count(*) > 1", "the function count is not allowed"),
        ("tir / 0 > 1", "div is not allowed"),
        ("cast(sex as int) > 1", "the function (try)?cast is not allowed"),
        ("sex rlike '('", "not allowed"),
        ("tir in ()", "not allowed"),
        ("tir[0] = 1", "bracket is not allowed"),
        ("tir > :x", "placeholder is not allowed"),
        ("tir > 'high'", "tir > 'high' at line 1, column 7: compares a number with a text"),
        ("sex in ('female', 3)", "compares a number with a text"),
        ("tir between 1 and 'x'", "compares a number with a text"),
        ("sex + 1 > 2", "expected a number, found a text"),
        ("tir and sex = 'male'", "expected a truth value, found a number"),
        ("tir", "the filter is a number, expected a condition"),
        ("sex", "the filter is a text, expected a condition"),
    ],
)
def test_refused_with_the_place(where, message):
    with pytest.raises(ConfigError, match=message):
        compiled(where, COLUMNS, "c")


def test_comments_do_not_reach_spark():
    assert "drop" not in compiled("tir > 1 /* drop */ -- drop", COLUMNS, "c")


def test_spark_reads_the_checked_text_as_written(spark):
    rows = [(1, 17.0, "female", 55.0), (2, 18.0, "male", 80.0), (3, 70.0, None, None), (4, 40.0, "it's", -3.0)]
    frame = spark.createDataFrame(rows, "n int, age_years double, sex string, tir double")
    expected = {
        "true": [1, 2, 3, 4],
        "false or null": [],
        "age_years >= 18": [2, 3, 4],
        "AGE_YEARS BETWEEN 17 AND 18": [1, 2],
        "age_years not between 17 and 18": [3, 4],
        "sex == 'female' or tir > 70": [1, 2],
        "sex <> 'female'": [2, 4],
        "not (sex = 'female' or tir > 70) ": [4],
        "sex is null": [3],
        "sex is not null and tir - age_years * 2 > 30": [2],
        "tir in (55, 80.0)": [1, 2],
        "tir not in (55)": [2, 4],
        "abs(tir) < 4 and -tir > 0": [4],
        "coalesce(tir, 100) > 90": [3],
        "sex = 'it\\'s'": [4],
        'sex = "male"': [2],
        "tir <=> null": [3],
        "(tir > 60) is not true": [1, 3, 4],
        "2000000000 * 3 > tir": [1, 2, 4],  # would overflow in integer arithmetic
    }
    texts = {where: compiled(where, COLUMNS, "c") for where in expected}
    picked = frame.selectExpr("n", *[f"coalesce({t}, false) as w{i}" for i, t in enumerate(texts.values())]).collect()
    for i, where in enumerate(texts):
        assert [r["n"] for r in picked if r[f"w{i}"]] == expected[where], where
