"""Who makes a request: `fspf.policy.principal`, under the name that the server knows.

What principals may do is decided where they ask.
"""

from __future__ import annotations

from fspf.policy.principal import Principal

__all__ = ["Principal"]
