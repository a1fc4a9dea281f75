"""Readers of raw files: patients, observations and exposures as text records with file and line (see records.Source)."""

from __future__ import annotations

import hashlib
import hmac

from twinlib import __version__
from twinlib.config import RunConfig
from twinlib.errors import ConfigError
from twinlib.fusion.vocabulary import load_vocabulary
from twinlib.sources.mapped import MappedSource
from twinlib.sources.mapping import load_mapping
from twinlib.sources.pseudonym import load_key

__all__ = ["check", "fingerprint", "load_key", "open_sources"]


def open_sources(config: RunConfig) -> list[MappedSource]:
    """The sources of a run in order of priority. Raises ConfigError where a mapping is wrong or two share a name."""
    opened = [MappedSource(load_mapping(s.mapping), s.mapping, s.root, s.name) for s in config.sources]
    names: dict[str, str] = {}
    for source in opened:
        if source.name in names:
            raise ConfigError(
                f"sources: {names[source.name]} and {source.path} are both named {source.name!r}; give one of them another `name`"
            )
        names[source.name] = source.path
    return opened


def check(config: RunConfig) -> None:
    """Everything that can be known before work starts: mappings, vocabulary and units, zones, files and their columns.

    Raises ConfigError or DataError that names the file and what was expected.
    """
    from twinlib.fusion.entries import interpret  # fusion builds on sources, not the other way round

    vocabulary, opened = load_vocabulary(config.vocabulary), open_sources(config)
    interpret(opened, vocabulary)
    for source in opened:
        source.check()


def fingerprint(config: RunConfig, key: bytes) -> str:
    """Hash of all that ingest reads: files by path, size and time, mappings, vocabulary, key and version of the package."""
    digest = hashlib.sha256(f"{__version__}\n{load_vocabulary(config.vocabulary).model_dump_json()}\n".encode())
    digest.update(hmac.new(key, b"fingerprint", hashlib.sha256).digest())
    for source in open_sources(config):
        digest.update(f"{source.name}\n{source.mapping.model_dump_json()}\n".encode())
        for _, files in source.files():
            for file in files:
                digest.update(f"{file.relative}\t{file.size}\t{file.modified}\n".encode())
    return digest.hexdigest()[:16]
