#!/usr/bin/env bash
# opentelemetry-instrumentation-flask: the span of a streamed answer ends before the first byte of its body.
#
# One would guess:  the server span of a request lasts until its answer has been sent; a stream of 0.9 s gives 0.9 s.
# What happens:     it ends when the view has returned its generator: a millisecond, whatever the stream takes, with
#                   stream_with_context too. Latency of streamed answers is lost, and spans begun while streaming start
#                   after their parent's end. Wrapping the app in OpenTelemetryMiddleware (wsgi) keeps the span open.
# Seen with:        opentelemetry-instrumentation-flask 0.66b1, opentelemetry-sdk 1.45.1, Flask 3.1.3, Python 3.11.7;
#                   2026-11-27
# Output seen:      the request took 0.92 s; span by Flask instrumentation 0.00 s, by the WSGI middleware 0.91 s

set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv --without-pip "$work/venv"
python3 -m pip --python "$work/venv/bin/python" install --quiet --disable-pip-version-check --no-compile \
  flask==3.1.3 opentelemetry-sdk==1.45.1 opentelemetry-instrumentation-flask==0.66b1

"$work/venv/bin/python" - <<'PYTHON'
import threading
import time
import urllib.request

import flask
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


def measure(instrument):
    """Seconds of the whole request, and of its span."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = flask.Flask("service")

    @app.get("/")
    def stream():
        def pieces():
            for number in range(3):
                time.sleep(0.3)
                yield str(number)

        return flask.Response(flask.stream_with_context(pieces()))

    instrument(app, provider)
    server = make_server("127.0.0.1", 0, app, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    start = time.monotonic()
    urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/").read()
    took = time.monotonic() - start
    for _ in range(100):  # the middleware ends its span just after the last byte
        if exporter.get_finished_spans():
            break
        time.sleep(0.02)
    (span,) = exporter.get_finished_spans()
    return took, (span.end_time - span.start_time) / 1e9


def wrap(app, provider):
    app.wsgi_app = OpenTelemetryMiddleware(app.wsgi_app, tracer_provider=provider)


took, by_flask = measure(lambda app, provider: FlaskInstrumentor().instrument_app(app, tracer_provider=provider))
_, by_wsgi = measure(wrap)
print(f"the request took {took:.2f} s; span by Flask instrumentation {by_flask:.2f} s, by the middleware {by_wsgi:.2f} s")
assert took > 0.8 and by_flask < 0.5, "CHANGED: the span covers the stream"
assert by_wsgi > 0.8, "CHANGED: the middleware's span ends early too"
print("as described")
PYTHON
