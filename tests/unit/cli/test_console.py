"""What goes to stdout and stderr, and in which form."""

from __future__ import annotations

import io
import json
import logging

import pytest

from fspf.cli.console import Console, OutputError, ReaderGoneError, human_size, json_name, logged, printable


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


class Broken(io.BytesIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def write(self, data: object) -> int:
        raise self._error


def make(*, as_json: bool = False, quiet: bool = False) -> tuple[Console, io.BytesIO, io.BytesIO]:
    out, err = io.BytesIO(), io.BytesIO()
    return Console(as_json=as_json, quiet=quiet, stdout=out, stderr=err), out, err


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param(b"plain name", "plain name", id="plain"),
        pytest.param("gr\u00fc\u00df".encode(), "gr\u00fc\u00df", id="UTF-8"),
        pytest.param(b"\x1b[31mred", "\\x1b[31mred", id="escape sequence"),
        pytest.param(b"a\nb\tc\x7f", "a\\nb\\tc\\x7f", id="control characters"),
        pytest.param(b"\xff\xfe", "\\xff\\xfe", id="not UTF-8"),
        pytest.param(b"a\\nb", "a\\\\nb", id="backslash is doubled"),
        pytest.param("a\u202eb".encode(), "a\\u202eb", id="right-to-left override"),
        pytest.param("\u009b31m".encode(), "\\x9b31m", id="C1 control"),
    ],
)
def test_printable(name: bytes, shown: str) -> None:
    assert printable(name) == shown


def test_names_are_raw_in_a_pipe_and_escaped_on_a_terminal() -> None:
    for stream, expected in ((io.BytesIO(), b"\x1b\xff\n"), (Terminal(), b"\\x1b\\xff\n")):
        console = Console(stdout=stream, stderr=io.BytesIO())
        console.line(console.name(b"\x1b\xff"))
        assert stream.getvalue() == expected


def test_json_name_keeps_exact_bytes() -> None:
    assert json_name("path", b"/a") == {"path": "/a"}
    odd = json_name("path", b"/\xff")
    assert odd == {"path": "/\udcff", "path_base64": "L/8="}
    assert json.loads(json.dumps(odd)) == odd


def test_text_only_without_json_and_documents_only_with_it() -> None:
    console, out, _ = make()
    console.line("text")
    console.document({"a": 1})
    assert out.getvalue() == b"text\n"
    console, out, _ = make(as_json=True)
    console.line("text")
    console.document({"a": 1})
    assert json.loads(out.getvalue()) == {"a": 1}


@pytest.mark.parametrize("items", [0, 1, 3])
def test_listing_is_one_document(items: int) -> None:
    console, out, _ = make(as_json=True)
    with console.listing({"volume": "v"}, "entries") as listing:
        for number in range(items):
            listing.add({"n": number})
        listing.close_with(total=items)
    expected = {"volume": "v", "entries": [{"n": n} for n in range(items)], "total": items, "complete": True}
    assert json.loads(out.getvalue()) == expected


def test_listing_without_head_is_one_document() -> None:
    console, out, _ = make(as_json=True)
    with console.listing({}, "entries"):
        pass
    assert json.loads(out.getvalue()) == {"entries": [], "complete": True}


def test_listing_that_failed_says_so() -> None:
    console, out, _ = make(as_json=True)
    with pytest.raises(ValueError, match="x"), console.listing({}, "entries") as listing:
        listing.add({"n": 1})
        raise ValueError("x")
    assert json.loads(out.getvalue()) == {"entries": [{"n": 1}], "complete": False}


def test_listing_writes_nothing_as_text() -> None:
    console, out, _ = make()
    with console.listing({}, "entries") as listing:
        listing.add({"n": 1})
    assert out.getvalue() == b""


def test_messages_are_one_safe_line() -> None:
    console, _, err = make()
    console.complain("error", "a\nb\x1b[0m \u202e")
    assert err.getvalue() == b"fspf: error: a\\nb\\x1b[0m \\u202e\n"


def test_messages_with_json_are_json_lines() -> None:
    console, _, err = make(as_json=True)
    console.warn("a\nb")
    console.note("c")
    assert [json.loads(line) for line in err.getvalue().splitlines()] == [{"warning": "a\nb"}, {"note": "c"}]


def test_quiet_silences_notes_but_not_warnings() -> None:
    console, _, err = make(quiet=True)
    console.note("n")
    console.warn("w")
    assert err.getvalue() == b"fspf: warning: w\n"


def test_closed_stdout_is_an_error_at_the_first_result() -> None:
    console, _, _ = make()
    console._stdout = None
    console.flush()
    with pytest.raises(OutputError, match="closed"):
        console.line("x")


def test_full_disk_and_gone_reader_differ() -> None:
    with pytest.raises(OutputError, match="No space left") as full:
        Console(stdout=Broken(OSError(28, "No space left on device")), stderr=io.BytesIO()).line("x")
    assert full.value.exit_code == 1
    with pytest.raises(ReaderGoneError) as gone:
        Console(stdout=Broken(BrokenPipeError()), stderr=io.BytesIO()).line("x")
    assert gone.value.exit_code == 141


def test_a_gone_stderr_does_not_matter() -> None:
    Console(stdout=io.BytesIO(), stderr=Broken(BrokenPipeError())).warn("x")


def test_engine_log_becomes_messages() -> None:
    console, _, err = make()
    log = logging.getLogger("fspf.some.module")
    log.propagate = True
    with logged(console):
        log.info("not shown")
    assert err.getvalue() == b""


def test_progress_is_silent_without_a_terminal() -> None:
    console, out, err = make()
    with console.progress("work") as bar:
        bar(1, 2)
        console.note("n")
    assert (out.getvalue(), err.getvalue()) == (b"", b"fspf: note: n\n")


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")])
def test_human_size(size: int, text: str) -> None:
    assert human_size(size) == text
