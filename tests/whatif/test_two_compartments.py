"""What-ifs of the two-compartment twin on people whose truth is known: nothing for nothing, the right sign, more for more."""

import numpy as np
import pytest

from twinlib.engine.kernel import Kernel
from twinlib.models import find
from twinlib.models.batch import Batch, Series
from twinlib.models.timeline import Events
from twinlib.synthetic import life
from twinlib.whatif.edits import Scale
from twinlib.whatif.scenarios import Scenario
from twinlib.whatif.simulate import Replay

pytestmark = pytest.mark.slow  # the kernel of the large model compiles for half a minute


@pytest.fixture(scope="module")
def replays() -> list[Replay]:
    """Two people under draws from the prior: the signs must hold for every draw, not only for good fits."""
    days, kernel = life.live(2, 1, life.REAL, 11), Kernel(find("glucose_two_compartment"))
    z = np.random.default_rng(4).standard_normal((16, len(kernel.model.fitted)))
    draws = kernel.model.prior_mean + kernel.model.prior_sd * np.clip(z, -2, 2)
    out = []
    for i in range(2):
        events = lambda x: Events.of(np.flatnonzero(x), x[x > 0])  # noqa: E731
        inputs = {
            "insulin_bolus": events(days.bolus[i]), "carbohydrate": events(days.logged[i]),
            "insulin_basal": Events.of([0.0], [days.basal[i] * 1440], 1440.0),
        }
        series = {"glucose": Series(np.arange(288) * 5.0, days.readings[i])}
        batch = Batch(((str(i), "1"),), np.array([1440.0]), (series,), (inputs,), ({"body_weight": float(days.weight[i])},), np.zeros(1))
        out.append(Replay.abduct(kernel, batch, draws))
    return out


def scaled(what: str, factor: float) -> Scenario:
    return Scenario("scaled", edits=(Scale(input=(what,), factor=factor),))


@pytest.mark.parametrize("what", ["insulin_bolus", "insulin_basal", "carbohydrate"])
def test_nothing_for_nothing(replays, what):
    assert all(np.all(r.effect(scaled(what, 1.0)) == 0) for r in replays)


@pytest.mark.parametrize("what", ["insulin_bolus", "insulin_basal"])
def test_more_insulin_never_raises_mean_glucose_and_its_effect_grows_with_the_dose(replays, what):
    for r in replays:
        means = np.stack([r.effect(scaled(what, f)).mean(1) for f in (0.0, 0.5, 0.8, 1.2, 1.5, 2.0)])
        assert np.all(np.diff(means, axis=0) < 0) and np.all(means[:3] > 0) and np.all(means[3:] < 0)


def test_more_carbohydrate_never_lowers_mean_glucose(replays):
    for r in replays:
        means = np.stack([r.effect(scaled("carbohydrate", f)).mean(1) for f in (0.0, 0.5, 0.8, 1.2, 1.5)])
        assert np.all(np.diff(means, axis=0) > 0)
