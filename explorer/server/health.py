"""/healthz and /metrics: whether a worker is there, and what was run, in Prometheus's format. Names that a visitor could make up are no label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from explorer.job import Finished
from explorer.records import Report

SECONDS = (0.05, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
NATS = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1, 3)
LOOPBACK = ("127.0.0.1", "::1")


class Watched(Protocol):
    """What is watched."""

    def healthy(self) -> bool: ...

    def waiting(self) -> int: ...

    def active(self) -> int: ...


class Metrics:
    """Counts what a runner tells; call it with each Finished."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"namespace": "explorer", "registry": self.registry}
        self.jobs = Counter("jobs", "Jobs that ended, by method or task and outcome", ["name", "outcome"], **own)
        self.hits = Counter("cache_hits", "Jobs that were answered from stored results", **own)
        self.seconds = Histogram("job_seconds", "Seconds that jobs computed", ["name"], buckets=SECONDS, **own)
        self.waited = Histogram("job_wait_seconds", "Seconds that jobs waited for their turn", buckets=SECONDS, **own)
        self.divergence = Histogram("kl_divergence_nats", "Mean KL divergence of quantized models that were measured", ["method"], buckets=NATS, **own)
        self.token = Histogram("token_latency_seconds", "95th percentile of token latency of models that were measured", ["method"], buckets=SECONDS, **own)

    def __call__(self, finished: Finished) -> None:
        """Takes one finished job."""
        self.jobs.labels(finished.name, finished.outcome).inc()
        self.waited.observe(finished.waited)
        if finished.event is not None and finished.event.provenance.get("from_store"):
            self.hits.inc()
            return
        self.seconds.labels(finished.name).observe(finished.seconds)
        if isinstance(finished.event, Report):
            for histogram, metric in ((self.divergence, "kld_mean"), (self.token, "decode_latency_p95")):
                if isinstance(value := finished.event.value(metric), float):
                    histogram.labels(finished.name).observe(value)

    def watch(self, runner: Watched) -> None:
        """Adds gauges of what a runner does now."""
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "queue_length": ("Jobs that wait", runner.waiting), "jobs_active": ("Jobs that compute", runner.active),
            "worker_up": ("1 while a worker is ready", lambda: float(runner.healthy())),
        }  # fmt: skip
        for name, (text, read) in gauges.items():
            Gauge(name, text, namespace="explorer", registry=self.registry).set_function(read)


def routes(runner: Watched, metrics: Metrics) -> list[Route]:
    """/healthz for everyone; /metrics for this machine alone, and never through a proxy."""

    async def healthz(request: Request) -> Response:
        up = runner.healthy()
        return JSONResponse({"worker": "ready" if up else "starting or down"}, 200 if up else 503)

    async def shown(request: Request) -> Response:
        if (request.client is None or request.client.host not in LOOPBACK) or "x-forwarded-for" in request.headers:
            return PlainTextResponse("Metrics are for this machine.\n", 403)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/metrics", shown)]
