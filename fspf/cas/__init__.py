"""The CAS: keys, anchors and leases of volumes, in an embedded store or in a server.

What a volume asks of it is the Protocol in `fspf.core.anchor`; volumes themselves are left to `fspf.volume`.
"""

from __future__ import annotations

from fspf.cas.embedded import EmbeddedCas
from fspf.cas.locate import ENVIRONMENT, Pin, open_cas, parse_url
from fspf.cas.portable import TAKEOVER_ADVICE, can_change_passphrase, change_passphrase, export_records, import_records

__all__ = [
    "ENVIRONMENT",
    "TAKEOVER_ADVICE",
    "EmbeddedCas",
    "Pin",
    "can_change_passphrase",
    "change_passphrase",
    "export_records",
    "import_records",
    "open_cas",
    "parse_url",
]
