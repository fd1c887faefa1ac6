"""Build of the C extension `fspf_native._native`; everything else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = sorted(str(path) for path in Path("fspf_native").glob("*.c"))
HEADERS = sorted(str(path) for path in Path("fspf_native").glob("*.h"))


def pkg_config(option: str) -> list[str]:
    """Ask pkg-config about libcrypto; the compiler's defaults where there is no pkg-config."""
    try:
        found = subprocess.run(["pkg-config", option, "libcrypto"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ["-lcrypto"] if option == "--libs" else []
    return shlex.split(found.stdout)


class BuildBeside(build_ext):  # type: ignore[misc]  # setuptools is untyped
    """Give a rebuilt module a new inode: running processes keep the one that they have mapped."""

    def copy_extensions_to_source(self) -> None:
        for extension in self.extensions:
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()


setup(
    cmdclass={"build_ext": BuildBeside},
    ext_modules=[
        Extension(
            "fspf_native._native",
            sources=SOURCES,
            depends=HEADERS,
            define_macros=[("_GNU_SOURCE", "1"), ("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            extra_compile_args=[
                "-std=c11",
                "-O3",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-Wconversion",
                "-Wstrict-prototypes",
                *(["-Werror"] if os.environ.get("FSPF_WERROR") == "1" else []),
                *pkg_config("--cflags"),
            ],
            extra_link_args=pkg_config("--libs"),
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
