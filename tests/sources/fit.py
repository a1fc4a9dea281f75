"""A minimal writer of FIT files for tests, after the protocol's description: header, definitions, data messages, checksums."""

import struct
from datetime import UTC, datetime

UINT8, UINT16, UINT32, ENUM = (0x02, "B"), (0x84, "H"), (0x86, "I"), (0x00, "B")
_NIBBLES = (0x0000, 0xCC01, 0xD801, 0x1400, 0xF001, 0x3C00, 0x2800, 0xE401, 0xA001, 0x6C00, 0x7800, 0xB401, 0x5000, 0x9C01, 0x8801, 0x4400)


def stamp(at: datetime) -> int:
    return int((at - datetime(1989, 12, 31, tzinfo=UTC)).total_seconds())


def message(local: int, number: int, *fields: tuple[int, tuple[int, str], int]) -> bytes:
    """A definition and one message of it; fields are (number, type, value)."""
    kinds = "<" + "".join(kind for _, (_, kind), _ in fields)
    sizes = b"".join(bytes([n, struct.calcsize(kind), base]) for n, (base, kind), _ in fields)
    definition = struct.pack("<BBBHB", 0x40 | local, 0, 0, number, len(fields)) + sizes
    return definition + bytes([local]) + struct.pack(kinds, *[v for *_, v in fields])


def checksum(data: bytes) -> int:
    crc = 0
    for byte in data:
        for nibble in (byte & 0xF, byte >> 4):
            crc = (crc >> 4) & 0x0FFF ^ _NIBBLES[crc & 0xF] ^ _NIBBLES[nibble]
    return crc


def fit_file(*messages: bytes) -> bytes:
    body = b"".join(messages)
    head = struct.pack("<BBHI4s", 14, 0x20, 2132, len(body), b".FIT")
    whole = head + struct.pack("<H", checksum(head)) + body
    return whole + struct.pack("<H", checksum(whole))
