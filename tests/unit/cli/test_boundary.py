"""Every way in which a command can end has one exit code and one line."""

from __future__ import annotations

import io
import json
import os
import signal

import pytest

from fspf.cli.boundary import guard, os_error_text
from fspf.cli.console import Console, ReaderGoneError
from fspf.core import errors
from fspf.core.anchor import Holder

HOLDER = Holder("host", "boot", 7, 1, 2, "mount")
ENDINGS = {
    "generic": (errors.FspfError("x"), 1),
    "usage": (errors.UsageError("x"), 2),
    "not a volume": (errors.NotAVolumeError("x"), 1),
    "newer format": (errors.UnsupportedFormatError("x"), 1),
    "volume exists": (errors.VolumeExistsError("x"), 1),
    "read only": (errors.ReadOnlyError("x"), 1),
    "integrity": (errors.IntegrityError("x"), 20),
    "format": (errors.FormatError("x"), 20),
    "torn": (errors.TornError("x"), 20),
    "damaged file": (errors.DamagedFileError(b"/a\xff", 5, 6, "torn"), 20),
    "freshness": (errors.FreshnessError("x", expected_generation=7, found_generation=6), 21),
    "lease held": (errors.LeaseHeldError(HOLDER), 22),
    "lease lost": (errors.LeaseLostError("x"), 22),
    "cas": (errors.CasError("x"), 23),
    "cas away": (errors.CasUnreachableError("x"), 23),
    "unknown volume": (errors.UnknownVolumeError("x"), 23),
    "wrong key": (errors.WrongKeyError("x"), 24),
    "system": (FileNotFoundError(2, "No such file or directory", "a"), 1),
    "memory": (MemoryError(), 1),
    "interrupt": (KeyboardInterrupt(), 130),
    "bug": (RuntimeError("x"), 1),
}


def run(failure: BaseException, *, as_json: bool = False) -> tuple[int, str, str]:
    out, err = io.BytesIO(), io.BytesIO()

    def action() -> int:
        raise failure

    code = guard(Console(as_json=as_json, stdout=out, stderr=err), action)
    return code, out.getvalue().decode(), err.getvalue().decode()


@pytest.mark.parametrize("ending", ENDINGS)
def test_exit_code_and_one_line(ending: str) -> None:
    failure, expected = ENDINGS[ending]
    code, out, err = run(failure)
    assert (code, out) == (expected, "")
    lines = err.splitlines()
    assert lines[0].startswith("fspf: error: ")
    assert all(line.startswith("fspf: hint: ") for line in lines[1:])
    assert not lines[0].endswith(".")
    assert "Traceback" not in err


@pytest.mark.parametrize("ending", ENDINGS)
def test_json_error_has_the_same_exit_code(ending: str) -> None:
    failure, expected = ENDINGS[ending]
    code, out, err = run(failure, as_json=True)
    error = json.loads(err.splitlines()[0])["error"]
    assert (code, out, error["exit_code"]) == (expected, "", expected)
    assert {"type", "message", "exit_code"} <= set(error)


def test_json_error_details() -> None:
    def details(ending: str) -> dict[str, object]:
        _, _, err = run(ENDINGS[ending][0], as_json=True)
        error: dict[str, object] = json.loads(err.splitlines()[0])["error"]
        return error

    assert (details("freshness")["expected_generation"], details("freshness")["found_generation"]) == (7, 6)
    assert details("lease held")["holder"] == "host/7 (mount)"
    assert details("system")["errno"] == 2
    damaged = details("damaged file")
    assert (damaged["path_base64"], damaged["offset"], damaged["length"], damaged["kind"]) == ("L2H/", 5, 6, "torn")


def test_a_gone_reader_is_no_news() -> None:
    assert run(ReaderGoneError()) == (141, "", "")


def test_success() -> None:
    err = io.BytesIO()
    assert guard(Console(stdout=io.BytesIO(), stderr=err), lambda: 0) == 0
    assert err.getvalue() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    cleaned: list[bool] = []

    def action() -> int:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleaned.append(True)
        return 0

    err = io.BytesIO()
    assert guard(Console(stdout=io.BytesIO(), stderr=err), action) == 143
    assert cleaned == [True]
    assert err.getvalue() == b"fspf: error: ended by a signal\n"
    assert signal.getsignal(number) is before


def test_os_error_names_both_files() -> None:
    assert (
        os_error_text(OSError(18, "Invalid cross-device link", "a\n", None, "b"))
        == "a\\n: b: invalid cross-device link"
    )
