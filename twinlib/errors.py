"""The errors that a user of a job can meet, each with the exit code that a scheduler sees.

A message says what is wrong, where (file, key, column, row) and what was expected. It never holds a patient's
identifier or values.
"""


class TwinlibError(Exception):
    """Base of all errors that are reported as one clear message instead of a stack trace."""

    exit_code = 1


class ConfigError(TwinlibError):
    """The configuration, a mapping, a scenario or a cohort is wrong; nothing has been run."""

    exit_code = 2


class DataError(TwinlibError):
    """Input is missing or refused as a whole (a missing file, a missing column, an undecidable date order)."""

    exit_code = 3


class Alerted(TwinlibError):
    """The run is done and its tables are written, but a threshold of `alerts` was exceeded."""

    exit_code = 4


class StorageError(TwinlibError):
    """A table cannot be read or written (locked by another run, contract broken, Delta's jars missing)."""

    exit_code = 5
