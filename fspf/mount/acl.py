"""POSIX access control lists in the form of their extended attributes, and how they and mode bits follow each other.

Enforcing them is the kernel's work; where they are stored, `operations`'.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final, NamedTuple

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_VERSION: Final = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_TAGS: Final = (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER)
_RWX: Final = 0o7


class Entry(NamedTuple):
    """Who (`tag`, and `identity` for a named user or group) may do what (`permissions`, three bits)."""

    tag: int
    permissions: int
    identity: int


Acl = list[Entry]


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def parse(raw: bytes) -> Acl:
    """Read an attribute's value. OSError EINVAL unless it is a valid list in order, EOPNOTSUPP for another version."""
    if len(raw) < _HEADER.size or (len(raw) - _HEADER.size) % _ENTRY.size:
        raise _invalid()
    if _HEADER.unpack_from(raw)[0] != _VERSION:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    acl = [Entry(*_ENTRY.unpack_from(raw, at)) for at in range(_HEADER.size, len(raw), _ENTRY.size)]
    tags = [entry.tag for entry in acl]
    if any(tag not in _TAGS for tag in tags) or tags != sorted(tags) or any(e.permissions & ~_RWX for e in acl):
        raise _invalid()
    if any(tags.count(tag) != 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)) or tags.count(_MASK) > 1:
        raise _invalid()
    if (_USER in tags or _GROUP in tags) and _MASK not in tags:
        raise _invalid()
    return acl


def pack(acl: Acl) -> bytes:
    """Return the attribute's value."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def is_minimal(acl: Acl) -> bool:
    """Tell whether the mode bits say all that the list does."""
    return len(acl) == 3


def mode_of(acl: Acl, mode: int) -> int:
    """Return *mode* with the permission bits that the list gives."""
    bits = {entry.tag: entry.permissions for entry in acl if entry.tag not in {_USER, _GROUP}}
    group = bits.get(_MASK, bits[_GROUP_OBJ])
    return (mode & ~0o777) | bits[_USER_OBJ] << 6 | group << 3 | bits[_OTHER]


def with_mode(acl: Acl, mode: int) -> Acl:
    """Return the list after chmod(2): owner, others, and the mask (the group, if there is none) follow *mode*."""
    group_tag = _MASK if any(entry.tag == _MASK for entry in acl) else _GROUP_OBJ
    bits = {_USER_OBJ: mode >> 6 & _RWX, group_tag: mode >> 3 & _RWX, _OTHER: mode & _RWX}
    return [entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in acl]


def inherit(default: Acl, mode: int) -> tuple[Acl, int]:
    """Return list and mode of something new in a directory with a default list; the umask has no say then."""
    group_tag = _MASK if any(entry.tag == _MASK for entry in default) else _GROUP_OBJ
    bits = {_USER_OBJ: mode >> 6 & _RWX, group_tag: mode >> 3 & _RWX, _OTHER: mode & _RWX}
    acl = [e._replace(permissions=e.permissions & bits[e.tag]) if e.tag in bits else e for e in default]
    return acl, mode_of(acl, mode)
