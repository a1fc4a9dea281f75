"""Finding and opening raw files on any file system that Arrow knows (local paths, s3://, gs://, hdfs://)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs as fs

from twinlib.errors import DataError


class File(NamedTuple):
    path: str
    relative: str
    size: int
    modified: int = 0  # ns


def filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """The file system of `root`, and the path of `root` on it."""
    if "://" in root:
        return fs.FileSystem.from_uri(root.replace("s3a://", "s3://", 1))
    return fs.LocalFileSystem(), str(Path(root).absolute())


def uri(root: str) -> str:
    """A folder as Spark names it, without a slash at its end."""
    return (root.replace("s3://", "s3a://", 1) if "://" in root else f"file://{Path(root).absolute()}").rstrip("/")


def glob_pattern(glob: str) -> re.Pattern:
    """`*` and `?` stay within one folder, `**/` is any number of folders."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(parts.get(t, re.escape(t)) for t in re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", glob)))


def find(root: str) -> list[File]:
    """All files under `root`, by relative path; hidden ones and archive litter (__MACOSX) left out.

    Raises DataError where the folder does not exist or cannot be listed.
    """
    try:
        system, base = filesystem(root)
        found = system.get_file_info(fs.FileSelector(base, recursive=True))
    except (OSError, ValueError) as e:
        raise DataError(f"{root}: folder cannot be listed ({type(e).__name__}); expected the source's raw files there") from None
    files = [File(f.path, f.path[len(base.rstrip("/")) + 1 :], f.size, f.mtime_ns or 0) for f in found if f.is_file]
    return sorted((f for f in files if not re.search(r"(^|/)(\.|__)", f.relative)), key=lambda f: f.relative)


def select(files: Iterable[File], globs: Iterable[str]) -> list[File]:
    patterns = [glob_pattern(g) for g in globs]
    return [f for f in files if any(p.fullmatch(f.relative) for p in patterns)]
