"""The version of this package: the one place that says it.

Format and protocol versions live in `fspf.core.format` and in the CAS.
"""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
