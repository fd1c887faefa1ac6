"""`fspf setup`: make mount(8), umount(8), fstab and systemd of this machine know FSPF; or undo it.

What they then run is `helper`; how they are used, docs/MOUNT.md.
"""

from __future__ import annotations

import importlib.resources
import os
import stat
import sys
import sysconfig
import tempfile
from typing import TYPE_CHECKING, Any, Final

from fspf.cli.console import quoted
from fspf.cli.options import nonempty
from fspf.core.errors import FspfError

if TYPE_CHECKING:
    import argparse

    from fspf.cli.console import Console

# Where mount(8) looks, and which of our programs it finds there. The kernel's name of the type is fuse.fspf.
LINKS: Final = {
    "sbin/mount.fspf": "mount.fspf",
    "sbin/mount.fuse.fspf": "mount.fspf",
    "sbin/umount.fspf": "umount.fspf",
    "sbin/umount.fuse.fspf": "umount.fspf",
}
UNITS: Final = "etc/systemd/system"
UNIT: Final = "fspf@.service"
_MARK: Final = "# FSPF unit, written by"


class NotOursError(FspfError):
    """Something else has the name that we need."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "setup",
        help="make mount(8), fstab and systemd know FSPF",
        description="Install links for mount(8) and umount(8) in /sbin, so that mount -t fspf, fstab and umount work, and "
        "the systemd unit fspf@.service.",
    )
    parser.add_argument("--remove", action="store_true", help="remove what setup has installed")
    parser.add_argument(
        "--root", metavar="DIR", type=nonempty, default="/", help="install below DIR instead of / (an image, a package)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    scripts = os.path.abspath(sysconfig.get_path("scripts"))
    changed = _remove(args.root) if args.remove else _install(args.root, scripts)
    done = {"installed": [] if args.remove else changed, "removed": changed if args.remove else []}
    console.document(done)
    for path in changed:
        console.line(f"{'removed' if args.remove else 'installed'}: {path}")
    if not args.remove and (closed := _closed_to_others(scripts, sys.executable)):
        console.warn(
            f"only root can run these, because of {closed}: umount(8) and fstab's option user will fail for other users"
        )
    if any(path.endswith(UNIT) for path in changed) and os.path.isdir("/run/systemd/system"):
        console.note("systemd reads its units anew with: systemctl daemon-reload")
    return 0


def _install(root: str, scripts: str) -> list[str]:
    for name in ("fspf", *set(LINKS.values())):
        if not os.access(os.path.join(scripts, name), os.X_OK):
            raise FspfError(
                f"{quoted(os.path.join(scripts, name))} is not there: install FSPF with pip, then run setup"
            )
    wanted = [(os.path.join(root, path), os.path.join(scripts, name)) for path, name in LINKS.items()]
    directory = os.path.join(root, UNITS)
    unit = os.path.join(directory, UNIT) if os.path.isdir(directory) else None  # a machine without systemd
    for path in [*(path for path, _ in wanted), *([unit] if unit else [])]:
        _refuse_foreign(path)
    for path, target in wanted:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{os.getpid()}"
        os.symlink(target, temporary)
        os.replace(temporary, path)
    if unit:
        _write(unit, unit_text(os.path.join(scripts, "fspf")))
    return [path for path, _ in wanted] + ([unit] if unit else [])


def _closed_to_others(*paths: str) -> str | None:
    """Return a directory on the way to one of *paths* that other users may not pass."""
    for path in paths:
        here = os.path.realpath(path)
        while here != "/":
            if not os.stat(here).st_mode & stat.S_IXOTH:
                return here
            here = os.path.dirname(here)
    return None


def _remove(root: str) -> list[str]:
    paths = [os.path.join(root, path) for path in (*LINKS, os.path.join(UNITS, UNIT))]
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        _refuse_foreign(path)
    for path in there:
        os.unlink(path)
    return there


def _refuse_foreign(path: str) -> None:
    """Raise unless *path* is free, or what an earlier setup made."""
    if os.path.islink(path):
        ours = os.path.basename(os.readlink(path)) in LINKS.values()
    elif os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            ours = file.read(len(_MARK)) == _MARK
    else:
        return
    if not ours:
        raise NotOursError(f"{quoted(path)} is not from fspf setup: nothing was changed; move it away first")


def unit_text(program: str) -> str:
    """Return the systemd unit for the given `fspf`."""
    text = (importlib.resources.files("fspf.mount") / "units" / UNIT).read_text(encoding="utf-8")
    return text.replace("@FSPF@", program)


def _write(path: str, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
    os.replace(temporary, path)
