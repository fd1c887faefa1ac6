"""Do something as the owner of a mount: the kernel lets nobody else, not even root, look into a mount without allow_other.

What is done is `client`'s business.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fspf.core.errors import FspfError
from fspf.mount.protocol import ReportedError, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.mount.system import MountEntry


def is_foreign(entry: MountEntry) -> bool:
    """Tell whether we are root and somebody else mounted it."""
    return os.geteuid() == 0 and entry.owner[0] != 0


def as_owner(entry: MountEntry, action: Callable[[], Any]) -> Any:
    """Return what *action* returns, which must be JSON-able; if we are root and it is another user's mount, as that user.

    Raises:
        ReportedError: What *action* raised as another user; an `OSError` keeps its errno.
    """
    if not is_foreign(entry):
        return action()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            _answer(entry, action, writer)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        raw = stream.read()
    os.waitpid(child, 0)
    if not raw:
        raise ReportedError(f"the process that was to act as user {entry.owner[0]} was ended")
    answer = json.loads(raw)
    if (error := answer.get("error")) is None:
        return answer["result"]
    if error["errno"] is not None:
        raise OSError(error["errno"], os.strerror(error["errno"]), entry.path)
    raise ReportedError(error["message"], exit_code=error["exit_code"], retryable=error["retryable"])


def _answer(entry: MountEntry, action: Callable[[], Any], writer: int) -> None:
    """In the child: become the owner, which also forbids that owner to look into this process, and act."""
    answer: dict[str, Any]
    try:
        uid, gid = entry.owner
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        answer = {"result": action()}
    except (OSError, FspfError) as exc:
        answer = {"error": {**describe(exc), "errno": exc.errno if isinstance(exc, OSError) else None}}
    with open(writer, "wb") as stream:
        stream.write(json.dumps(answer).encode())
