"""docs/CLI.md and the parser tree are the same: commands, options, exit codes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from fspf.cli import boundary
from fspf.cli.main import COMMANDS, build_parser
from fspf.cli.options import add_common
from fspf.core import errors

DOCUMENT = (Path(__file__).parents[3] / "docs" / "CLI.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## `fspf ([^`]+)`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def usage_of(command: str, parser: argparse.ArgumentParser) -> str:
    forms = {"?": "[{}]", "*": "[{} …]", "+": "{} …"}
    found = [action for action in parser._actions if not action.option_strings]
    return " ".join([command, *(forms.get(str(each.nargs), "{}").format(each.metavar) for each in found)])


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def common_options() -> set[str]:
    parser = argparse.ArgumentParser()
    add_common(parser)
    return options_of(parser)


def all_commands() -> dict[str, argparse.ArgumentParser]:
    def visit(name: str, parser: argparse.ArgumentParser) -> None:
        below = subparsers_of(parser)
        for action, each in below.items():
            visit(f"{name} {action}".lstrip(), each)
        if not below:
            commands[name] = parser

    commands: dict[str, argparse.ArgumentParser] = {}
    visit("", build_parser(load=True))
    return commands


def command_of(heading: str) -> str:
    return " ".join(word for word in heading.split() if word.islower() and word.isalpha())


def documented() -> dict[str, tuple[str, str]]:
    return {command_of(heading): (heading, text) for heading, text in SECTION.findall(DOCUMENT)}


def options_in(text: str) -> set[str]:
    cells = re.findall(r"^\| (`-[^|]*) \|", text, re.MULTILINE)
    return {option for cell in cells for option in re.findall(r"`(-{1,2}[a-zA-Z][a-z-]*)", cell)}


def test_every_command_is_documented_and_back() -> None:
    assert set(documented()) == set(all_commands())


@pytest.mark.parametrize("command", sorted(documented()))
def test_options_are_those_of_the_document(command: str) -> None:
    parser = all_commands()[command]
    own = options_of(parser) - common_options()
    assert options_in(documented()[command][1]) == own


@pytest.mark.parametrize("command", sorted(documented()))
def test_arguments_are_those_of_the_document(command: str) -> None:
    assert documented()[command][0] == usage_of(command, all_commands()[command])


@pytest.mark.parametrize("command", sorted(documented()))
def test_every_command_takes_the_common_options(command: str) -> None:
    assert common_options() <= options_of(all_commands()[command])


def test_common_options_are_documented_and_back() -> None:
    text = DOCUMENT.split("### Common options")[1].split("\n## ")[0]
    assert options_in(text) == common_options()


def test_every_command_shows_its_json() -> None:
    assert [command for command, (_, text) in documented().items() if "```json" not in text] == []


def test_exit_codes_are_those_of_the_code() -> None:
    text = DOCUMENT.split("## Exit codes")[1].split("\n## ")[0]
    found = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    classes = [errors.FspfError]
    for each in classes:
        classes.extend(each.__subclasses__())
    assert found == {each.exit_code for each in classes if each.__module__.startswith("fspf.")} | {
        boundary.EXIT_OK,
        boundary.EXIT_INTERRUPTED,
        boundary.EXIT_TERMINATED,
    }


def test_help_of_every_command_is_in_the_overview() -> None:
    text = build_parser().format_help()
    for name in COMMANDS:
        assert re.search(rf"^    {name} ", text, re.MULTILINE)


@pytest.mark.parametrize("command", sorted(all_commands()))
def test_no_passphrase_is_ever_an_argument(command: str) -> None:
    for option in options_of(all_commands()[command]):
        assert "passphrase" not in option or option.endswith(("-file", "-fd"))
