"""The peer: ReplayBG's default MAP twin of one patient-day, in CPU seconds. Optional: pip install -r benchmarks/peers.txt into an
environment of its own and name its Python in $TWINLIB_REPLAYBG; `make bench NAME=engine` then runs this file with it (about 6 minutes).

It knows nothing of twinlib. Input: a CSV file in ReplayBG's layout, body weight (kg) and basal insulin (mU/kg/min); output: one JSON line.
"""

import json
import resource
import sys
import tempfile
from importlib.metadata import version
from multiprocessing import freeze_support

import pandas as pd
from py_replay_bg.py_replay_bg import ReplayBG


def main(path: str, weight: float, basal: float) -> None:
    data = pd.read_csv(path, parse_dates=["t"])
    folder = tempfile.mkdtemp()
    twin = ReplayBG(blueprint="single-meal", save_folder=folder, yts=5, exercise=False, seed=1, verbose=False, plot_mode=False)
    twin.twin(data=data, bw=weight, save_name="day", twinning_method="map", parallelize=False, u2ss=basal)
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"version": version("py-replay-bg"), "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in used)}))


if __name__ == "__main__":
    freeze_support()
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
