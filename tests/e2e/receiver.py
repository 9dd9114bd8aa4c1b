"""What an operator's services receive from Airflow: alerts as JSON, metrics and traces as OTLP over HTTP."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Receiver:
    """Keeps what is posted to it, by path."""

    def __init__(self) -> None:
        self._bodies: dict[str, list[bytes]] = {}
        received = self._bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                packed = self.headers.get("Content-Encoding") == "gzip"
                received.setdefault(self.path.split("?")[0], []).append(gzip.decompress(body) if packed else body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Nothing: the test's output is for what fails."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def alerts(self) -> list[dict[str, Any]]:
        """What Apprise has posted: title, message, type."""
        return [json.loads(body) for body in self._bodies.get("/alerts", [])]

    def metrics(self) -> dict[str, list[dict[str, Any]]]:
        """The attributes of each point of each metric, by the metric's name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for body in list(self._bodies.get("/v1/metrics", [])):
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                    data = getattr(metric, str(metric.WhichOneof("data")))
                    found.setdefault(metric.name, []).extend(_values(point.attributes) for point in data.data_points)
        return found

    def spans(self) -> Iterator[tuple[bytes, str, dict[str, Any]]]:
        """Trace, name and attributes of each span."""
        for body in list(self._bodies.get("/v1/traces", [])):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    yield span.trace_id, span.name, _values(span.attributes)


def _values(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, str(item.value.WhichOneof("value"))) for item in attributes}


def wait_for(found: Callable[[], Any], timeout_s: float = 120) -> Any:
    """What `found` returns, once that is something; after `timeout_s` whatever it is."""
    deadline = time.monotonic() + timeout_s
    while not (it := found()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return it
