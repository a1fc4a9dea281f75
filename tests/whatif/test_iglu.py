"""CGM metrics against iglu (Broll et al. 2021, 10.1371/journal.pone.0248560) through its Python port, on all of its example people."""

import pandas as pd
import pytest

try:
    from twinlib.whatif.cgm import OUTCOMES, cgm_outcomes
except ImportError:
    from twinlib.whatif.outcomes import OUTCOMES, cgm_outcomes

pytestmark = pytest.mark.realdata
FILES = ("example_data_5_subject.csv", "example_data_hall.csv")
NAMES = [o.name for o in OUTCOMES]


@pytest.fixture(scope="module")
def readings(data) -> pd.DataFrame:
    frames = [pd.read_csv(data / "iglu_examples" / f, parse_dates=["time"])[["id", "time", "gl"]] for f in FILES]
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def oracle(readings) -> pd.DataFrame:
    """Columns named as our outcomes, one row per person."""
    iglu = pytest.importorskip("iglu_python", reason="iglu-python is an optional test dependency")
    indexed = lambda df: df.set_index("id")  # noqa: E731
    tables = {
        "tir": indexed(iglu.in_range_percent(readings, target_ranges=[[70, 180]]))["in_range_70_180"],
        "mean_glucose": indexed(iglu.mean_glu(readings)).iloc[:, 0],
        "cv": indexed(iglu.cv_glu(readings)).iloc[:, 0],
        "gmi": indexed(iglu.gmi(readings)).iloc[:, 0],
        "lbgi": indexed(iglu.lbgi(readings)).iloc[:, 0],
        "hbgi": indexed(iglu.hbgi(readings)).iloc[:, 0],
        "gri": indexed(iglu.gri(readings)).iloc[:, 0],
    }
    below, above = indexed(iglu.below_percent(readings, targets_below=[54, 70])), indexed(iglu.above_percent(readings, targets_above=[180, 250]))
    tables |= {"tbr_54": below["below_54"], "tbr_70": below["below_70"], "tar_180": above["above_180"], "tar_250": above["above_250"]}
    return pd.DataFrame(tables)


@pytest.fixture(scope="module")
def ours(readings) -> pd.DataFrame:
    return pd.DataFrame({i: cgm_outcomes(g.gl.to_numpy(float)) for i, g in readings.groupby("id")}, index=NAMES).T


def test_all_people_are_compared(oracle, ours):
    assert len(ours) == 24 and set(oracle.index) == set(ours.index)
    assert {"tir", "tbr_54", "tbr_70", "tar_180", "tar_250", "mean_glucose", "cv", "gmi"} <= set(NAMES)


@pytest.mark.parametrize("name", ["tir", "tbr_54", "tbr_70", "tar_180", "tar_250", "mean_glucose", "cv", "gmi", "lbgi", "hbgi", "gri"])
def test_metric_is_iglus(oracle, ours, name):
    if name not in NAMES:
        pytest.skip(f"no outcome {name}")
    wanted = oracle[name].reindex(ours.index).to_numpy(float)
    assert ours[name].to_numpy() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_standard_deviation_is_iglus(readings, ours):
    iglu = pytest.importorskip("iglu_python", reason="iglu-python is an optional test dependency")
    wanted = iglu.sd_glu(readings).set_index("id").iloc[:, 0].reindex(ours.index)
    assert (ours["cv"] * ours["mean_glucose"] / 100).to_numpy() == pytest.approx(wanted.to_numpy(float), rel=1e-9)


def test_figures_printed_in_iglus_readme(ours):
    """Of the R package, to the digits shown there: Subject 1 has mean glucose 124 and is 91.7 % of the time in 70 to 180."""
    assert round(ours.loc["Subject 1", "mean_glucose"]) == 124 and round(ours.loc["Subject 1", "tir"], 1) == 91.7
