"""What `/metrics` of `nightshift serve` shows, for Prometheus."""

from __future__ import annotations

from collections import deque
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
RECENT = 1_000
"""Documents that the share of abstained ones is of."""


class Meters:
    """Counters and gauges; each server has its own."""

    def __init__(self) -> None:
        self.registry = one = CollectorRegistry()
        ProcessCollector(registry=one)
        self.requests = Counter(
            "nightshift_requests", "Requests, by path and status.", ["path", "status"], registry=one
        )
        self.seconds = Histogram(
            "nightshift_request_seconds", "From a request to its answer.", ["path"], registry=one,
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
        )  # fmt: skip
        self.documents = Counter(
            "nightshift_documents", "Texts by outcome: answered, abstained, error.", ["outcome"],
            registry=one,
        )  # fmt: skip
        self.abstained = Gauge(
            "nightshift_abstained_share", f"Of the last {RECENT} documents.", registry=one
        )
        self.waiting = Gauge(
            "nightshift_waiting_texts", "Texts that wait for their answers.", registry=one
        )
        self.version = Gauge(
            "nightshift_model_version", "The version that answers; 0 before any.", registry=one
        )
        self.swaps = Counter("nightshift_swaps", "Champions loaded.", registry=one)
        self.failed = Counter(
            "nightshift_failed_swaps", "Champions that could not be loaded.", registry=one
        )
        self.reached = Gauge(
            "nightshift_registry_up", "Whether the registry answered when last asked.", registry=one
        )
        self._recent: deque[bool] = deque(maxlen=RECENT)

    def count(self, rows: list[dict[str, Any]]) -> None:
        """Count the documents of an answer."""
        for row in rows:
            outcome = "error" if row["error"] else "abstained" if row["abstained"] else "answered"
            self.documents.labels(outcome).inc()
            self._recent.append(outcome == "abstained")
        if self._recent:
            self.abstained.set(sum(self._recent) / len(self._recent))

    def page(self) -> bytes:
        """All of it in the format of Prometheus."""
        return generate_latest(self.registry)
