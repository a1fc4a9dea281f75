"""Garmin's FIT files through fitdecode: every data message is a row of its fields, in the units of Garmin's profile.

The name of the message is the column `message`, its number in the file the line. Instants are texts in UTC. A message that tells its
time in 16 bits only (monitoring) continues from the last full time stamp, as Garmin's SDK describes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

import fitdecode

from twinlib.sources.blocks import BLOCK_ROWS, Block, Unreadable, from_rows

EPOCH = datetime(1989, 12, 31, tzinfo=UTC)  # of FIT's time stamps


def messages(stream: BinaryIO) -> Iterator[Block]:
    """Blocks of the data messages of one file. Raises Unreadable where it is damaged; what comes before is yielded first."""
    rows, number, last, broken = [], 0, None, None
    try:
        with fitdecode.FitReader(io.BytesIO(stream.read()), check_crc=fitdecode.CrcCheck.RAISE, error_handling=fitdecode.ErrorHandling.RAISE) as reader:
            for frame in reader:
                if frame.frame_type != fitdecode.FIT_FRAME_DATA:
                    continue
                number += 1
                fields = {f.name: f.value for f in frame.fields if f.value is not None}
                if isinstance(fields.get("timestamp"), datetime):
                    last = fields["timestamp"]
                elif last is not None and isinstance(fields.get("timestamp_16"), int):
                    seconds = int((last - EPOCH).total_seconds())
                    last += timedelta(seconds=(fields["timestamp_16"] - seconds) & 0xFFFF)
                    fields["timestamp"] = last
                rows.append((number, {"message": frame.name} | {n: _text(v) for n, v in fields.items()}))
                if len(rows) >= BLOCK_ROWS:
                    yield from_rows(rows)
                    rows.clear()
    except (fitdecode.FitError, ValueError) as e:
        broken = Unreadable("unreadable_file", f"not a readable FIT file after message {number} ({type(e).__name__})")
    if rows:
        yield from_rows(rows)
    if broken:
        raise broken


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(sep="T", timespec="seconds")
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
