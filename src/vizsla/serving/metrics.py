"""What the server counts, for Prometheus.

With one process the figures are in memory; with several, prometheus_client keeps those of each in
files in the folder that PROMETHEUS_MULTIPROC_DIR names, which the supervisor makes, and whichever
process is asked adds them up.
"""

from __future__ import annotations

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
SHARED_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts requests, and listens to the batcher. Safe to call from several threads."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self._requests = Counter(
            "vizsla_requests",
            "Requests by route and HTTP status.",
            ["route", "status"],
            registry=own,
        )
        self._errors = Counter("vizsla_errors", "Refused requests by code.", ["code"], registry=own)
        self._refused_pictures = Counter(
            "vizsla_refused_pictures",
            "Pictures that got no answer while others of their request did, by code.",
            ["code"],
            registry=own,
        )
        self._seconds = Histogram(
            "vizsla_request_seconds",
            "From a request's body to its answer.",
            buckets=_SECONDS,
            registry=own,
        )
        self._batches = Histogram(
            "vizsla_batch_pictures",
            "Pictures in each run of the network.",
            buckets=_PICTURES,
            registry=own,
        )
        self._model_seconds = Counter(
            "vizsla_model_seconds", "Seconds in the network, of all threads.", registry=own
        )
        self._decode_seconds = Counter(
            "vizsla_decode_seconds", "Seconds of decoding, of all threads.", registry=own
        )
        self._under_way = Gauge(
            "vizsla_queue_pictures",
            "Pictures under way.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self._ready = Gauge(
            "vizsla_ready_processes",
            "Processes whose threads are at work.",
            multiprocess_mode="livesum",
            registry=own,
        )

    def decoded(self, seconds: float) -> None:
        self._decode_seconds.inc(seconds)

    def answered(self, pictures: int, seconds: float) -> None:
        self._batches.observe(pictures)
        self._model_seconds.inc(seconds)

    def responded(self, route: str, status: int, code: str | None = None) -> None:
        """Count a response, and its error's code."""
        self._requests.labels(route, str(status)).inc()
        if code is not None:
            self._errors.labels(code).inc()

    def took(self, seconds: float) -> None:
        """Note the time that an answer took."""
        self._seconds.observe(seconds)

    def refused(self, code: str) -> None:
        """Count a picture that got no answer while others of its request did."""
        self._refused_pictures.labels(code).inc()

    def stand(self, under_way: int, ready: bool) -> None:
        """Note how things stand at this moment."""
        self._under_way.set(under_way)
        self._ready.set(float(ready))

    def page(self) -> bytes:
        """All figures of all processes, in Prometheus' text format."""
        if SHARED_FOLDER_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
