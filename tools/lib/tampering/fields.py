"""Name every byte of header, keyring record, root frame, log and checksum entry, as docs/FORMAT.md does.

The numbers are written down here once more on purpose: what alters the fields shall not believe the code that reads them.
What is done to the fields is in `tools.lib.tampering.small`.
"""

from __future__ import annotations

from typing import Final

Fields = dict[str, tuple[int, int]]  # name -> first byte, one behind the last

HEADER_LEN: Final = 4096
HEADER: Final[Fields] = {
    "magic": (0, 8),
    "version": (8, 10),
    "flags": (10, 12),
    "chunk_size": (12, 16),
    "segment_slots": (16, 20),
    "reserved_1": (20, 24),
    "volume_id": (24, 40),
    "reserved_2": (40, 4088),
    "checksum": (4088, 4096),
}

KEYRING_RECORD_LEN: Final = 64
KEYRING: Final[Fields] = {"epoch": (0, 4), "key_version": (4, 8), "wrapped": (8, 56), "checksum": (56, 64)}

ROOT_LEN: Final = 4096
_ROOT_FIXED: Final[Fields] = {
    "magic": (0, 8),
    "key_version": (8, 12),
    "epoch": (12, 16),
    "sealed_len": (16, 20),
    "nonce": (20, 32),
    "tag": (32, 48),
}

ENTRY_LEN: Final = 16
ENTRY: Final[Fields] = {"checksum": (0, 8), "epoch": (8, 11), "counter": (11, 16)}


def root_fields(frame: bytes) -> Fields:
    """Return the fields of one root frame; where `sealed` ends depends on it."""
    end = 48 + int.from_bytes(frame[16:20], "little")
    return {**_ROOT_FIXED, "sealed": (48, end), "padding": (end, 4088), "checksum": (4088, 4096)}


LOG_LEN: Final = 8 << 20
LOG_MAGIC: Final = b"FSPF-LOG"
LEFT_OVER: Final = "left over"  # behind the chain: what earlier rounds left, or zeros
_LOG_FIXED: Final[Fields] = {
    "magic": (0, 8),
    "key_version": (8, 12),
    "epoch": (12, 16),
    "sealed_len": (16, 20),
    "nonce": (20, 32),
    "tag": (32, 48),
    "reserved": (48, 56),
    "checksum": (56, 64),
}


def log_fields(log: bytes, records: int) -> Fields:
    """Return the fields of a log whose chain has so many *records*, as `record 0 magic`, and what lies behind them."""
    found: Fields = {}
    start = 0
    for number in range(records):
        assert log[start : start + 8] == LOG_MAGIC
        end = start + 64 + int.from_bytes(log[start + 16 : start + 20], "little")
        after = -(-end // 4096) * 4096
        for name, (low, high) in _LOG_FIXED.items():
            found[f"record {number} {name}"] = (start + low, start + high)
        found[f"record {number} sealed"] = (start + 64, end)
        if after > end:
            found[f"record {number} padding"] = (end, after)
        start = after
    return {**found, LEFT_OVER: (start, len(log))}


def unnamed_bytes(fields: Fields, length: int) -> list[int]:
    """Return the bytes that no field, or more than one, names."""
    named = [byte for low, high in fields.values() for byte in range(low, high)]
    return [byte for byte in range(length) if named.count(byte) != 1] if sorted(named) != list(range(length)) else []
