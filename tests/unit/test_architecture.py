"""The shape of the code is a test: who may import whom, what core may not touch, how a module begins.

The rules are fixed in the project's design and style; whether a module is any good is for its own tests and reviewers.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

REPO: Final = Path(__file__).resolve().parents[2]

# Arrows point down only:  fspf_native <- core <- volume | cas <- mount <- cli;  `fspf` and `fspf.fsspec` are the library's front.
MAY_IMPORT: Final[dict[str, set[str]]] = {
    "fspf_native": set(),
    "fspf._version": set(),
    "fspf.core": {"fspf_native"},
    "fspf.volume": {"fspf.core", "fspf_native"},  # the CAS comes in as a core Protocol
    "fspf.policy": {"fspf.core", "fspf_native"},  # documents, boards, plans, placeholders: no I/O
    "fspf.attestation": {"fspf.core", "fspf_native"},  # evidence: verified as pure functions, made by `make_*`
    "fspf.cas": {"fspf._version", "fspf.core", "fspf.policy", "fspf.attestation", "fspf_native"},
    "fspf": {"fspf._version", "fspf.core", "fspf.cas", "fspf.volume"},
    "fspf.fsspec": {"fspf", "fspf.core", "fspf.cas", "fspf.volume"},
    "fspf.mount": {"fspf._version", "fspf.core", "fspf.cas", "fspf.volume", "fspf_native"},
    "fspf.cli": {
        "fspf._version",
        "fspf",
        "fspf.core",
        "fspf.policy",
        "fspf.attestation",
        "fspf.cas",
        "fspf.volume",
        "fspf.mount",
        "fspf_native",
    },
    "fspf.__main__": {"fspf.cli"},
}

# core is pure: no I/O, no clock, no randomness, no threads. `errno`, `struct`, `dataclasses` … are fine.
NOT_IN_CORE: Final = {
    "asyncio", "contextvars", "datetime", "fcntl", "glob", "io", "logging", "mmap", "multiprocessing", "os", "pathlib",
    "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "stat", "subprocess",
    "tempfile", "threading", "time", "urllib", "uuid",
    "apsw", "fsspec", "pyfuse3", "rich", "trio",
}  # fmt: skip

# Packages that this holds for, with the modules that are pure though their neighbours are not.
PURE: Final[dict[str, set[str]]] = {"fspf.core": set(), "fspf.policy": {"urllib.parse"}}

# Third parties that belong to one package.
ONLY_IN: Final = {
    "aiohttp": {"fspf.cas"},
    "apsw": {"fspf.volume", "fspf.cas"},
    "argparse": {"fspf.cli"},
    "h11": {"fspf.cas"},
    "fsspec": {"fspf.fsspec"},
    "psycopg": {"fspf.cas"},
    "pyfuse3": {"fspf.mount"},
    "rich": {"fspf.cli"},
    "trio": {"fspf.mount"},
    "yaml": {"fspf.policy"},
}

# Handlers that catch everything and do not raise it again: (module, function) -> why that is right.
BOUNDARIES: Final[dict[tuple[str, str], str]] = {
    # The boundaries: a FUSE request (Python's or the data plane's), a command, the daemon's last frame.
    ("fspf.mount.boundary", "guarded.wrapper"): "an exception that is no FUSEError ends the mount for everyone",
    ("fspf.cli.boundary", "guard"): "a command ends with one line and an exit code",
    ("fspf.mount.daemon", "Daemon._fork_again"): "nobody is above it, and stderr is gone: the caller is told",
    ("fspf.mount.daemon", "Daemon._serve"): "the end of a mount, whatever ended it, is logged and told to the caller",
    ("fspf.mount.plane", "Plane._guarded"): "native threads know errnos only; anything else would end the process",
    (
        "fspf.cas.application",
        "Application.__call__",
    ): "a bug in one request is logged and answered with 500; others go on",
    # Requests without an answer, that pass the error to the first boundary's table.
    ("fspf.mount.operations", "Operations.forget"): "FORGET has no answer, so no error either",
    ("fspf.mount.operations", "Operations._settle"): "one failure must not keep the other files open",
    ("fspf.volume.rebuild", "Rebuild._run"): "whatever ends the walk, closing must know that there is no result",
    ("fspf.volume.commit", "Commits._anchor_loop"): "whatever ends the thread, writers must not wait for it",
    # Threads: what they catch is raised again where their result is taken.
    ("fspf.volume.importer", "_Importer._commit"): "raised again by the thread that imports",
    ("fspf.volume.reader", "TreeReader._work"): "raised again by the thread that takes the batches",
}

# Module-level state that changes: (module, name) -> why there is no way around it.
STATE: Final[dict[tuple[str, str], str]] = {
    ("fspf.cas.file", "_forking"): "hooks for forks belong to the process and cannot be taken back",
}

AIM_LINES: Final = 250
MANY_LINES: Final = 500
TOO_MANY_LINES: Final = 1000


@dataclass(frozen=True, slots=True)
class Module:
    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        """The longest key of MAY_IMPORT that it belongs to."""
        return package_of(self.name)

    @property
    def where(self) -> str:
        return str(self.path.relative_to(REPO))


def package_of(name: str) -> str:
    fitting = [key for key in MAY_IMPORT if name == key or (name.startswith(key + ".") and key != "fspf")]
    if not fitting:
        raise AssertionError(f"{name} belongs to no package of MAY_IMPORT: add it there, or move it")
    return max(fitting, key=len)


def load() -> list[Module]:
    found = []
    for top in ("fspf", "fspf_native"):
        for path in sorted((REPO / top).rglob("*.py")):
            parts = list(path.relative_to(REPO).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            source = path.read_text(encoding="utf-8")
            found.append(Module(".".join(parts), path, ast.parse(source, str(path)), source.count("\n")))
    return found


MODULES: Final = load()
BY_NAME: Final = {module.name: module for module in MODULES}
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Yield every imported module, also those inside functions and `if TYPE_CHECKING`, with its line."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.where}:{node.lineno}: absolute imports only"
            assert node.module is not None
            for alias in node.names:
                below = f"{node.module}.{alias.name}"  # `from fspf import cas` names a module
                yield (below if below in BY_NAME else node.module), node.lineno


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_listed_package_has_files(package: str) -> None:
    assert any(module.package == package for module in MODULES), f"{package} has no module: the list above is stale"


@each_module
def test_arrows_point_down(module: Module) -> None:
    allowed = MAY_IMPORT[module.package] | {module.package}
    wrong = []
    for name, line in imports(module):
        if name.split(".")[0] in {"fspf", "fspf_native"} and package_of(name) not in allowed:
            wrong.append(f"{module.where}:{line}: {module.package} may not import {name}")
        if name.split(".")[0] in {"tests", "tools", "benchmarks"}:
            wrong.append(f"{module.where}:{line}: the product does not know {name}")
    assert not wrong, "\n".join(wrong)


def test_rules_are_without_cycles() -> None:
    order: list[str] = []
    left = {package: set(below) for package, below in MAY_IMPORT.items()}
    while left:
        ready = [package for package, below in left.items() if below <= set(order)]
        assert ready, f"a cycle among {sorted(left)}"
        order += ready
        for package in ready:
            del left[package]


@pytest.mark.parametrize("module", [m for m in MODULES if m.package in PURE], ids=lambda module: module.name)
def test_pure_packages_are_pure(module: Module) -> None:
    wrong = [
        f"{module.where}:{line}: {name}"
        for name, line in imports(module)
        if name.split(".")[0] in NOT_IN_CORE and name not in PURE[module.package]
    ]
    opened = [
        f"{module.where}:{node.lineno}: {node.func.id}()"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"open", "print", "input"}
    ]
    assert not wrong + opened, "\n".join(wrong + opened)


@each_module
def test_third_party_stays_at_home(module: Module) -> None:
    wrong = [
        f"{module.where}:{line}: {name} belongs to {' and '.join(sorted(ONLY_IN[name.split('.')[0]]))}"
        for name, line in imports(module)
        if module.package not in ONLY_IN.get(name.split(".")[0], {module.package})
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import fspf", {"trio", "pyfuse3", "rich", "argparse", "fsspec", "fspf.mount", "fspf.cli"}),
        ("import fspf.fsspec", {"trio", "pyfuse3", "rich", "fspf.mount", "fspf.cli"}),
        ("import fspf.cli.main", {"trio", "pyfuse3"}),  # `fspf ls` does not wait for an event loop
    ],
)
def test_import_is_light(statement: str, absent: set[str]) -> None:
    program = f"import sys\n{statement}\nprint(*sorted({absent!r} & sys.modules.keys()))"
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# ------------------------------------------------------------------------- how modules look


def helper_modules() -> list[Module]:
    found = []
    for folder in ("tests/support", "tools/lib", "benchmarks"):
        for path in sorted((REPO / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            name = ".".join(path.relative_to(REPO).with_suffix("").parts)
            found.append(Module(name, path, ast.parse(source, str(path)), source.count("\n")))
    return found


@pytest.mark.parametrize("module", MODULES + helper_modules(), ids=lambda module: module.name)
def test_module_says_what_it_does_and_what_it_leaves_to_others(module: Module) -> None:
    text = ast.get_docstring(module.tree)
    assert text, f"{module.where} has no docstring"
    first, _, rest = text.partition("\n")
    assert first.rstrip().endswith((".", ":")), f"{module.where}: the first line is one sentence: {first!r}"
    assert rest.strip(), f"{module.where}: the second sentence says what the module leaves to others"


@each_module
def test_annotations_are_lazy(module: Module) -> None:
    names = [node for node in module.tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert names or len(module.tree.body) <= 1, f"{module.where}: from __future__ import annotations"


def broad_handlers(module: Module) -> Iterator[tuple[str, int]]:
    """Yield (function, line) of each handler that catches everything and does not end by raising."""

    def visit(node: ast.AST, function: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            inside = function
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inside = f"{function}.{child.name}".lstrip(".")
            if isinstance(child, ast.ExceptHandler):
                kinds = child.type.elts if isinstance(child.type, ast.Tuple) else [child.type]
                names = {kind.id if isinstance(kind, ast.Name) else None for kind in kinds if kind is not None}
                everything = child.type is None or names & {"Exception", "BaseException"}
                # Exception swallows our own bugs even when it raises something else; BaseException is for cleaning up.
                again = isinstance(child.body[-1], ast.Raise) and child.body[-1].exc is None
                if everything and not again:
                    yield function, child.lineno
            yield from visit(child, inside)

    yield from visit(module.tree, "")


@each_module
def test_everything_is_caught_only_at_boundaries(module: Module) -> None:
    wrong = [
        f"{module.where}:{line}: {function or 'the module'} catches everything; raise it again, or argue for an entry in BOUNDARIES"
        for function, line in broad_handlers(module)
        if (module.name, function) not in BOUNDARIES
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("name", "function"), BOUNDARIES)
def test_boundary_still_exists(name: str, function: str) -> None:
    assert function in {found for found, _ in broad_handlers(BY_NAME[name])}, (
        f"{name}.{function} catches nothing broad any more"
    )


@each_module
def test_nothing_mutable_at_module_level(module: Module) -> None:
    wrong = []
    for node in module.tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        name = target.id if isinstance(target, ast.Name) else ""
        mutable = isinstance(node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)
        constant = name.isupper() or not isinstance(target, ast.Name) or name == "__all__"
        if mutable and not constant and (module.name, name) not in STATE:
            wrong.append(f"{module.where}:{node.lineno}: {name}")
    assert not wrong, "\n".join(wrong)


def test_modules_are_of_readable_size(
    record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    large = sorted(((m.lines, m.where) for m in MODULES if m.lines > AIM_LINES), reverse=True)
    with capsys.disabled():
        if any(lines > MANY_LINES for lines, _ in large):
            print(f"\n{len(large)} of {len(MODULES)} modules above {AIM_LINES} lines; above {MANY_LINES}:")
        for lines, where in large:
            if lines > MANY_LINES:
                print(f"  {lines:5} {where}")
    for lines, where in large:
        record_property(where, lines)
    assert not [where for lines, where in large if lines > TOO_MANY_LINES]
