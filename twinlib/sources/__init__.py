"""Readers of raw files: patients, observations and exposures as text records with file and line (see records.Source)."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from twinlib import __version__
from twinlib.config import RunConfig, SourceConfig
from twinlib.errors import ConfigError
from twinlib.fusion.vocabulary import Vocabulary, load_vocabulary
from twinlib.sources.ehr import EhrSource
from twinlib.sources.fhir import fhir_source
from twinlib.sources.mapped import MappedSource
from twinlib.sources.mapping import expanded, load_mapping
from twinlib.sources.omop import omop_source
from twinlib.sources.pseudonym import load_key

__all__ = ["check", "fingerprint", "load_key", "open_sources"]


def open_sources(config: RunConfig) -> list[MappedSource | EhrSource]:
    """The sources of a run in order of priority. Raises ConfigError where a mapping is wrong or two share a name."""
    vocabulary = load_vocabulary(config.vocabulary)
    opened = [_open(s, vocabulary) for s in config.sources]
    names: dict[str, str] = {}
    for source in opened:
        if source.name in names:
            raise ConfigError(
                f"sources: {names[source.name]} and {source.path} are both named {source.name!r}; give one of them another `name`"
            )
        names[source.name] = source.path
    return opened


def _open(source: SourceConfig, vocabulary: Vocabulary) -> MappedSource | EhrSource:
    if source.kind == "mapped":
        mapping = expanded(load_mapping(source.mapping), vocabulary, source.mapping)
        return MappedSource(mapping, source.mapping, source.root, source.name)
    return {"omop": omop_source, "fhir": fhir_source}[source.kind](source, vocabulary)


def check(config: RunConfig) -> None:
    """Everything that can be known before work starts: mappings, vocabulary and units, zones, files and their columns.

    Raises ConfigError or DataError that names the file and what was expected.
    """
    from twinlib.fusion.entries import interpret  # fusion builds on sources, not the other way round
    from twinlib.fusion.identity import crosswalk

    vocabulary, opened = load_vocabulary(config.vocabulary), open_sources(config)
    interpret(opened, vocabulary)
    for source in opened:
        source.check()
    if config.identity and config.identity.crosswalk:
        crosswalk(config.identity.crosswalk, opened, b"")


def fingerprint(config: RunConfig, key: bytes) -> str:
    """Hash of all that ingest reads: files by path, size and time, mappings, vocabulary, key and version of the package."""
    digest = hashlib.sha256(f"{__version__}\n{load_vocabulary(config.vocabulary).model_dump_json()}\n".encode())
    digest.update(hmac.new(key, b"fingerprint", hashlib.sha256).digest())
    for source in open_sources(config):
        digest.update(f"{source.name}\n{source.described}\n".encode())
        for _, files in source.files():
            for file in files:
                digest.update(f"{file.relative}\t{file.size}\t{file.modified}\n".encode())
    if config.identity:
        digest.update(config.identity.model_dump_json().encode())
        digest.update(Path(config.identity.crosswalk).read_bytes() if config.identity.crosswalk else b"")
    return digest.hexdigest()[:16]
