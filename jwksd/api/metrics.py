"""What /metrics says: counters, gauges and a histogram, in the two formats that Prometheus reads.

    text/plain; version=0.0.4       # TYPE jwks_logins_total counter    by default
    application/openmetrics-text    # TYPE jwks_logins counter          if Accept names it

Rules of this file:
- A metric is one row of `response`: both formats are made of it.
- No two metrics have one name in OpenMetrics, where a counter is named without its `_total`.
- A label holds a word of ours, never something that a client sent.

It leaves out: the time of the JWKS and of refusals at once. They take microseconds, and the clock
would be a good part of that.
"""

from __future__ import annotations

import functools
import threading
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Callable

import jwksd
from jwksd import httpd
from jwksd.api.limits import Limit
from jwksd.store import keystore

# OpenMetrics 1.0, and the Prometheus text exposition format.
OPEN_METRICS = "application/openmetrics-text"
OPEN_METRICS_TYPE = f"{OPEN_METRICS}; version=1.0.0; charset=utf-8"
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# s: a page takes less than the least, a remembered login one millisecond, a first one twenty, and
# after two seconds in a queue it is refused.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
Endpoint = Callable[[httpd.Request], httpd.Answer]
Row = tuple[str, str, str, str, Mapping[Any, float]]


class Seconds:
    """How long requests took, by route. For any thread."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.now = monotonic
        self._lock = threading.Lock()  # guards both below
        self._counts: dict[str, list[int]] = {}  # by bound; the last for longer ones
        self._sums: dict[str, float] = {}

    def of(self, route: str, endpoint: Endpoint) -> Endpoint:
        """`endpoint`, with the seconds until its answers counted, where it does not raise."""

        def answer_timed(request: httpd.Request) -> httpd.Answer:
            started = self.now()
            answer = endpoint(request)
            if isinstance(answer, httpd.Response):
                self.observe(route, started)
            else:
                answer.add_done_callback(functools.partial(self.observe, route, started))
            return answer

        return answer_timed

    def observe(self, route: str, started: float, _: object = None) -> None:
        """Count a request of this route that ends now."""
        seconds = self.now() - started
        with self._lock:
            counts = self._counts.setdefault(route, [0] * (len(BOUNDS) + 1))
            counts[bisect_left(BOUNDS, seconds)] += 1
            self._sums[route] = self._sums.get(route, 0.0) + seconds

    def samples(self, name: str) -> list[str]:
        """The lines of the histogram."""
        with self._lock:
            known = [
                (route, [*counts], self._sums[route]) for route, counts in self._counts.items()
            ]
        lines = []
        for route, counts, total in sorted(known):
            label = f'route="{route}"'
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), accumulate(counts)):
                lines.append(f'{name}_bucket{{{label},le="{bound}"}} {count}\n')
            lines.append(f"{name}_sum{{{label}}} {total}\n")
            lines.append(f"{name}_count{{{label}}} {sum(counts)}\n")
        return lines


def wants_open_metrics(accept: str) -> bool:
    """Whether an Accept field names OpenMetrics (RFC 9110 §12.5.1); it never has to be first."""
    for member in accept.lower().split(","):
        media_type, *parameters = (part.strip(" \t") for part in member.split(";"))
        if media_type == OPEN_METRICS:
            return not {"q=0", "q=0.0", "q=0.00", "q=0.000"} & {*parameters}
    return False


def response(
    accept: str,
    http: httpd.Stats,
    workers: httpd.Workers,
    seconds: Seconds,
    logins: Mapping[str, int],
    limits: Mapping[str, Limit],
    keys: keystore.KeyStore,
    *,
    ready: bool,
) -> httpd.Response:
    """All metrics, in the format that the Accept field asks for."""
    refused = {
        "server_full": http.rejected_full,
        "client_share": http.rejected_client,
        "queue_full": workers.refused,
    }
    limited = {name: limit.refused for name, limit in limits.items()}
    sources = {name: len(limit.limiter) for name, limit in limits.items()}
    published = {"": len(keys.published().keys)}
    rows: tuple[Row, ...] = (
        ("ready", "gauge", "Whether a token could be issued now.", "", {"": int(ready)}),
        ("responses_total", "counter", "Answers by status.", "status", http.requests),
        ("connections_open", "gauge", "Open connections.", "", {"": http.connections_open}),
        ("connections_total", "counter", "Connections.", "", {"": http.connections_accepted}),
        ("queue", "gauge", "Waiting for a worker or the disk.", "", {"": workers.queued}),
        ("gave_way_total", "counter", "Closed for a newcomer.", "", {"": http.gave_way}),
        ("rejected_total", "counter", "Turned away under load.", "reason", refused),
        ("timeouts_total", "counter", "Clients that were too slow.", "", {"": http.timeouts}),
        ("log_lines_dropped_total", "counter", "Lines lost.", "", {"": http.log_lines_dropped}),
        ("logins_total", "counter", "Attempts at /auth by outcome.", "outcome", logins),
        ("limited_total", "counter", "Requests answered 429.", "route", limited),
        ("limiter_sources", "gauge", "Addresses the limiter holds.", "route", sources),
        ("keys", "gauge", "Published keys.", "", published),
        ("next_key_seconds", "gauge", "Until the next key is made.", "", {"": keys.due_in()}),
        ("build_info", "gauge", "The version that runs.", "version", {jwksd.__version__: 1}),
    )
    open_metrics = wants_open_metrics(accept)
    name = "jwks_request_seconds"
    help_text = "Of a request to its answer; not of the JWKS, nor of what is refused at once."
    text = [family(*row, open_metrics=open_metrics) for row in rows]
    text += [head(name, "histogram", help_text), *seconds.samples(name)]
    text += ["# EOF\n"] if open_metrics else []
    media_type = OPEN_METRICS_TYPE if open_metrics else TEXT_TYPE
    fields = (("Content-Type", media_type), ("Cache-Control", "no-store"))
    return httpd.Response(200, fields, "".join(text).encode())


def family(
    name: str,
    kind: str,
    help_text: str,
    label: str,
    values: Mapping[Any, float],
    *,
    open_metrics: bool,
) -> str:
    """One metric with its help, its type and its samples."""
    name = f"jwks_{name}"
    samples = "".join(
        f'{name}{{{label}="{value}"}} {count}\n' if label else f"{name} {count}\n"
        for value, count in sorted(dict(values).items())
    )
    return head(name.removesuffix("_total") if open_metrics else name, kind, help_text) + samples


def head(name: str, kind: str, help_text: str) -> str:
    """The two lines before the samples of a metric."""
    return f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n"
