"""The model in docs/models.md is one that works."""

import re
import sys
from pathlib import Path

import numpy as np

from twinlib.engine import mode
from twinlib.engine.kernel import Data, Kernel
from twinlib.models import find

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def test_the_documented_model_is_found_by_name_and_fits(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    (tmp_path / "own_model.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    model = find("own_model:Slow")
    kernel = Kernel(model, 5)
    rng = np.random.default_rng(0)
    doses = np.zeros((1, 200 * 5))
    doses[0, [100, 400]] = 60.0
    truth = model.prior_mean + 0.5 * model.prior_sd
    data = Data(np.zeros((1, 0)), doses, np.zeros((1, 200)))
    noise, start = 0.1 * rng.standard_normal((1, 200, 2)), np.array([[120.0, 0.0]])
    y = kernel.simulate(model.natural(truth[None]), [0], data, noise, start) + 5 * rng.standard_normal((1, 200))
    found = mode.find(kernel, model.natural, Data(data.constants, doses, y), model.prior_mean, model.prior_sd, model.prior_mean[None])
    assert found.status[0] == "converged" and np.abs(found.theta[0] - truth).max() < 1.0
