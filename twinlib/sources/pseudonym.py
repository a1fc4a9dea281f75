"""Keyed pseudonyms of patients. Raw identifiers never leave the step that reads the files."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

import pyarrow as pa
import pyarrow.compute as pc

from twinlib.config import PseudonymConfig
from twinlib.errors import ConfigError
from twinlib.sources.blocks import recoded

MINIMUM_BYTES = 16


def load_key(config: PseudonymConfig) -> bytes:
    """The pseudonym key from its file or environment variable.

    A missing file is made (32 random bytes as hexadecimal text, mode 0600) where `create` says so. Raises ConfigError where
    there is no key, or one shorter than 16 bytes.
    """
    if config.env is not None:
        text = os.environ.get(config.env)
        if text is None:
            raise ConfigError(f"pseudonym_key: environment variable {config.env} is not set")
        key, place = text.encode(), f"environment variable {config.env}"
    else:
        place = config.file
        if config.create:
            _create(config.file)
        try:
            with open(config.file, "rb") as f:
                key = f.read()
        except OSError as e:
            raise ConfigError(
                f"pseudonym_key: {config.file} cannot be read ({e.strerror}); expected a file with the key"
            ) from None
    key = key.strip()
    if len(key) < MINIMUM_BYTES:
        raise ConfigError(f"pseudonym_key: {place} holds {len(key)} bytes; expected at least {MINIMUM_BYTES}")
    return key


def _create(path: str) -> None:
    if os.path.exists(path):
        return
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        temporary = f"{path}.{secrets.token_hex(4)}"
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            f.write(secrets.token_hex(32))
        try:
            os.link(temporary, path)  # never replaces a key that another run has just made
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
    except OSError as e:
        raise ConfigError(f"pseudonym_key: {path} cannot be made ({e.strerror})") from None


def pseudonym(key: bytes, namespace: str, raw: str) -> str:
    """First 32 hexadecimal digits of HMAC-SHA256(key, namespace, 0x1F, id)."""
    return hmac.new(key, f"{namespace}\x1f{raw}".encode(), hashlib.sha256).hexdigest()[:32]


def pseudonyms(key: bytes, namespace: str, raw: pa.Array) -> pa.DictionaryArray:
    """Pseudonyms of a text array (or of a coded one), coded, worked out once per different id; null stays null."""
    coded = raw if pa.types.is_dictionary(raw.type) else pc.dictionary_encode(raw)
    named = pa.array([None if x is None else pseudonym(key, namespace, x) for x in coded.dictionary.to_pylist()], pa.string())
    return recoded(coded.indices, named)


def system_mark(key: bytes, system: str) -> str:
    """What the tokens of one identifier system begin with, so that they can be told apart without naming it."""
    return pseudonym(key, "identifier system", system)[:12]


def tokens(key: bytes, system: str, raw: pa.Array) -> pa.Array:
    """Keyed tokens of identifiers, equal where system and identifier are: `<system_mark>:<pseudonym>`; null stays null."""
    named = pseudonyms(key, f"identifier {system}", raw).dictionary_decode()
    return pc.binary_join_element_wise(pa.scalar(system_mark(key, system)), named, ":")
