"""Arguments: common options anywhere, usage errors with exit code 2, light start."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fspf._version import __version__
from fspf.cli.main import build_parser, main
from fspf.cli.options import DEFAULTS
from fspf.core.errors import UsageError


@pytest.mark.parametrize(
    "words",
    [
        ["--cas", "x", "--json", "scrub", "v"],
        ["scrub", "--cas", "x", "--json", "v"],
        ["--cas", "x", "scrub", "v", "--json"],
        ["--cas=x", "--json", "scrub", "--", "v"],
    ],
)
def test_common_options_stand_anywhere(words: list[str]) -> None:
    import argparse

    args = build_parser().parse_args(words, argparse.Namespace(**DEFAULTS))
    assert (args.cas, args.as_json, args.quiet, args.volume) == ("x", True, False, "v")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="nothing"),
        pytest.param(["nonsense"], id="unknown command"),
        pytest.param(["scrub"], id="argument is missing"),
        pytest.param(["scrub", "a", "b"], id="too many"),
        pytest.param(["scrub", "--nonsense", "v"], id="unknown option"),
        pytest.param(["scrub", ""], id="empty name"),
        pytest.param(["ls", ""], id="empty volume"),
        pytest.param(["--js", "scrub", "v"], id="no abbreviations"),
        pytest.param(["scrub", "--passphrase-fd", "x", "v"], id="no descriptor"),
        pytest.param(["scrub", "--passphrase-fd", "0", "--passphrase-file", "f", "v"], id="two passphrases"),
        pytest.param(["verify", "--threads", "0", "v"], id="no thread"),
        pytest.param(["create", "--freshness", "sometimes", "v"], id="freshness"),
        pytest.param(["create", "--chunk-size", "5000", "v"], id="chunk size"),
        pytest.param(["create", "--segment-slots", "32", "v"], id="segment slots"),
        pytest.param(["cas"], id="no action"),
        pytest.param(["cas", "export"], id="no output"),
        pytest.param(["cas", "show", "--all", "v"], id="one or all"),
        pytest.param(["verify", "--accept-stale", "/"], id="stale without salvage"),
    ],
)
def test_usage_errors(words: list[str], capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(words) == 2
    out, err = capsysbinary.readouterr()
    assert out == b""
    assert err.startswith(b"fspf: error: ")
    assert err.count(b"\n") == 1
    assert main(["--json", *words]) == 2
    out, err = capsysbinary.readouterr()
    assert (out, json.loads(err)["error"]["exit_code"]) == (b"", 2)


def test_usage_error_is_our_error() -> None:
    with pytest.raises(UsageError):
        build_parser().parse_args(["nonsense"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fspf {__version__}\n"


@pytest.mark.parametrize("command", ["--version", "--help", "ls --help", "cas --help"])
def test_start_is_light(command: str) -> None:
    code = (
        "import sys\nfrom fspf.cli.main import main\nmain(sys.argv[1:])\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)
    assert done.stdout
    loaded = set(done.stderr.split())
    assert not loaded & {"trio", "pyfuse3", "rich", "cryptography", "fsspec"}


def test_python_m_fspf() -> None:
    done = subprocess.run([sys.executable, "-m", "fspf", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fspf {__version__}\n"


@pytest.mark.parametrize("where", ["/dev/full", "closed"])
def test_version_that_cannot_be_written(where: str) -> None:
    redirect = ">&-" if where == "closed" else f"> {where}"
    line = f'exec "$0" -m fspf --version {redirect}'
    done = subprocess.run(["/bin/sh", "-c", line, sys.executable], capture_output=True, env=os.environ)
    assert done.returncode == 1
