"""What Spark's tasks took between two moments, from the driver's own status store: no listener, no web interface."""

from __future__ import annotations

from itertools import takewhile

from pyspark.sql import SparkSession

_MB = 1 / 2**20
_JVM, _PYTHON = "JVMHeapMemory", "ProcessTreePythonRSSMemory"


class Tasks:
    """Counts from the moment it is made.

    spark: a session with a driver of this process (not Spark Connect).
    """

    def __init__(self, spark: SparkSession):
        self._context = spark.sparkContext
        newest = next(self._stages(False), None)
        self._seen = -1 if newest is None else newest.stageId()

    def _stages(self, summaries: bool):
        """Stages, newest first, as the store gives them: a long session holds a thousand."""
        scala = self._context._jsc.sc()
        scala.listenerBus().waitUntilEmpty(10_000)
        quantiles = self._context._gateway.new_array(self._context._jvm.double, 2)
        quantiles[0], quantiles[1] = 0.5, 1.0
        none = self._context._jvm.java.util.ArrayList()
        found = scala.statusStore().stageList(none, False, summaries, quantiles, none)
        return (found.apply(k) for k in range(found.size()))

    def measure(self, seconds: float) -> dict[str, float]:
        """Figures of the tasks that have run since; `seconds` is the time that passed.

        jvm_cpu_seconds is the processor time of Spark's own threads; what task_seconds exceed it by is Python and waiting. skew is the
        longest task over the median one, of the stage with most task time. Peaks are of the executor with the largest (0 where
        /proc has no such figure, as outside of Linux).
        """
        stages = list(takewhile(lambda s: s.stageId() > self._seen, self._stages(True)))
        total = lambda f: float(sum(f(s) for s in stages))  # noqa: E731
        out = {
            "tasks": total(lambda s: s.numCompleteTasks()),
            "task_seconds": total(lambda s: s.executorRunTime()) / 1e3,
            "jvm_cpu_seconds": total(lambda s: s.executorCpuTime()) / 1e9,
            "gc_seconds": total(lambda s: s.jvmGcTime()) / 1e3,
            "rows_read": total(lambda s: s.inputRecords()),
            "rows_written": total(lambda s: s.outputRecords()),
            "shuffle_mb": total(lambda s: s.shuffleWriteBytes()) * _MB,
            "spill_mb": total(lambda s: s.diskBytesSpilled()) * _MB,
        }
        out["rows_per_second"] = out["rows_read"] / seconds if seconds > 0 else 0.0
        out["skew"] = _skew(stages)
        peaks = [s.peakExecutorMetrics().get() for s in stages if s.peakExecutorMetrics().isDefined()]
        for name, metric in (("peak_jvm_mb", _JVM), ("peak_python_mb", _PYTHON)):
            out[name] = max((p.getMetricValue(metric) for p in peaks), default=0) * _MB
        return out


def _skew(stages) -> float:
    """1 where there is nothing to compare."""
    longest = max(stages, key=lambda s: s.executorRunTime(), default=None)
    spread = longest.taskMetricsDistributions() if longest is not None else None
    if spread is None or spread.isEmpty():
        return 1.0
    times = spread.get().executorRunTime()
    return times.apply(1) / times.apply(0) if times.apply(0) > 0 else 1.0
