"""CAS servers that the user has attested: their key hashes, and who the user is there, in the configuration directory.

What to believe without a remembered or given hash: nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from typing import Any, Final

from fspf.core.errors import CasError, FspfError

_FILE: Final = "cas.json"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Known:
    """One server."""

    key_hash: str
    identity: str = ""  # path of the identity file, "" if none was named


def config_directory() -> str:
    """Return where the user's configuration is."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config):  # the XDG specification: relative ones are to be ignored
        config = os.path.expanduser("~/.config")
    return os.path.join(config, "fspf")


def recall(name: str) -> Known | None:
    """Return what is remembered of the server *name* (``https://host:port``), None if nothing is."""
    members = _read(os.path.join(config_directory(), _FILE)).get(name)
    return None if members is None else Known(members["key_hash"], members.get("identity", ""))


def remember(name: str, known: Known) -> str:
    """Remember a server; return the path of the file.

    Raises:
        FspfError: It cannot be written.
    """
    directory = config_directory()
    path = os.path.join(directory, _FILE)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            servers = _read(path)
            servers[name] = {"key_hash": known.key_hash, **({"identity": known.identity} if known.identity else {})}
            part = f"{path}.{secrets.token_hex(4)}"
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump({"version": _VERSION, "servers": servers}, file, indent=2, sort_keys=True)
                file.write("\n")
                file.flush()
                os.fsync(fd)
            os.rename(part, path)
            os.fsync(lock)
        finally:
            os.close(lock)
    except OSError as exc:
        raise FspfError(f"{path} cannot be written: {exc.strerror}") from None
    return path


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise CasError(f"{path} cannot be read: {exc.strerror}") from None
    except ValueError:
        document = None
    try:
        if document["version"] != _VERSION:
            raise ValueError
        servers = document["servers"]
        for members in servers.values():
            if not isinstance(members["key_hash"], str) or not isinstance(members.get("identity", ""), str):
                raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CasError(f"{path} is damaged: correct or remove it, and attest the CAS servers again") from None
    return dict(servers)
