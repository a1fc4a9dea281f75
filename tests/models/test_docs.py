"""The model in docs/models.md is one that works."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from twinlib.engine import mode
from twinlib.engine.kernel import Data, Kernel
from twinlib.engine.normal import Normal
from twinlib.engine.schedule import Drive, build
from twinlib.models import find

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def test_the_documented_model_is_found_by_name_and_fits(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    (tmp_path / "own_model.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    model = find("own_model:Slow")
    kernel = Kernel(model)
    rng = np.random.default_rng(0)
    times, doses = np.arange(200) * 5.0, Drive(np.array([100.0, 400.0]), np.full(2, 60.0), np.zeros(2), 0.0)
    truth = model.prior_mean + 0.5 * model.prior_sd
    data = Data.of(np.zeros((1, 0)), [build(times, [doses], model.step)], [np.zeros((200, 1))])
    noise, start = 0.1 * rng.standard_normal((200, 2)), np.array([[120.0, 0.0]])
    y = kernel.simulate(truth[None], [0], data, noise, start) + 5 * rng.standard_normal((200, 1))
    prior = Normal.independent(model.prior_mean, model.prior_sd, 1)
    found = mode.find(kernel, replace(data, readings=y), prior, prior.mean)
    assert found.status[0] == "converged" and np.abs(found.theta[0] - truth).max() < 1.0
