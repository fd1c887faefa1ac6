"""Collect what was logged at WARNING and above, and match it against what a test announced.

Only this process's logging; what a daemon wrote into its log file is the e2e fixtures' business.
"""

from __future__ import annotations

import logging
import re


class Quiet(logging.Handler):
    """Quiet means healthy: a WARNING that no test announced is a failure."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: list[logging.LogRecord] = []
        self._allowed: list[str] = []
        self._required: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def allow(self, pattern: str) -> None:
        """A message that *pattern* finds may be logged."""
        self._allowed.append(pattern)

    def require(self, pattern: str) -> None:
        """A message that *pattern* finds must be logged."""
        self._allowed.append(pattern)
        self._required.append(pattern)

    @property
    def messages(self) -> list[str]:
        return [f"{record.name}: {record.levelname}: {record.getMessage()}" for record in self._records]

    def problems(self) -> list[str]:
        messages = self.messages
        unexpected = [m for m in messages if not any(re.search(p, m) for p in self._allowed)]
        missing = [p for p in self._required if not any(re.search(p, m) for m in messages)]
        return [f"unannounced log message: {m}" for m in unexpected] + [f"never logged: {p!r}" for p in missing]
