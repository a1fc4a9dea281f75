"""Population digital twins on Apache Spark: fuse records, fit a twin to every patient, simulate what-ifs."""

__version__ = "0.1.0"
