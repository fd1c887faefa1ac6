"""`python -m tests.support.counted ...`: the command line, whose mounts also count calls to the CAS in their status.

What is counted elsewhere: requests by the relay itself, the volume's input and output by iocount.c.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from fspf.cas.embedded import EmbeddedCas
from fspf.cli.main import main
from fspf.mount.control import Control

CALLS: Counter[str] = Counter()


def counted(method: Callable[..., Any]) -> Callable[..., Any]:
    """Count calls of a method by its name, but for those that say that they did nothing."""

    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        if result is not False:
            CALLS[f"cas_{method.__name__}"] += 1
        return result

    return call


def install() -> None:
    for name in ("fetch", "acquire", "renew", "advance", "advance_with", "release", "rekey"):
        setattr(EmbeddedCas, name, counted(getattr(EmbeddedCas, name)))
    original = Control.counters

    def counters(self: Control) -> dict[str, int]:
        return {
            **original(self),
            **{f"cas_{name}": 0 for name in ("advance", "advance_with", "fetch", "renew")},
            **CALLS,
        }

    Control.counters = counters  # type: ignore[method-assign]


if __name__ == "__main__":
    install()
    sys.exit(main())
