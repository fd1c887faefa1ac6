"""The volume engine: an encrypted, authenticated, fresh file system in a directory.

It leaves mounting to `fspf.mount` and the keeping of keys and anchors to `fspf.cas`.
"""

from __future__ import annotations

from fspf.volume.volume import Volume

__all__ = ["Volume"]
