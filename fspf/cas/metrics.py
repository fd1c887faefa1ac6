"""What a CAS server counts, for Prometheus.

Where the numbers come from is `service` and `server`; showing them, Prometheus' own library.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
_COMMITS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.anchors: Final = Counter("fspf_cas_anchors", "Anchors moved forward.", registry=self.registry)
        self.anchor_seconds: Final = Histogram(
            "fspf_cas_anchor_seconds",
            "Time to answer an anchor.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.anchor_lag: Final = Histogram(
            "fspf_cas_anchor_lag_commits",
            "Commits that one anchor covers: how far the volume was ahead of the CAS.",
            ["mode"],
            buckets=_COMMITS,
            registry=self.registry,
        )
        self.attestations: Final = Counter(
            "fspf_cas_attestations", "Evidence exchanged for a token, or not.", ["result"], registry=self.registry
        )
        self.leases: Final = Counter("fspf_cas_leases", "Leases.", ["event"], registry=self.registry)
        self.keys: Final = Counter(
            "fspf_cas_keys_released", "Keys of volumes given to clients.", registry=self.registry
        )
        self.requests: Final = Counter(
            "fspf_cas_requests", "Requests answered.", ["operation", "status"], registry=self.registry
        )
        self.store_errors: Final = Counter(
            "fspf_cas_store_errors", "Requests that the store did not answer.", registry=self.registry
        )
        self.connections: Final = Gauge("fspf_cas_connections", "Open connections.", registry=self.registry)
        self.refused_connections: Final = Counter(
            "fspf_cas_connections_refused", "Connections ended by the server.", ["reason"], registry=self.registry
        )

    def render(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)
