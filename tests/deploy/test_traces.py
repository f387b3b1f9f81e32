"""Spans, read by OpenTelemetry's own schema of what a receiver takes."""

import base64
import http.server
import json
import os
import threading
import unittest

import common
from common import ask, await_some

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# In the JSON of OTLP these are hexadecimal; other messages of protobuf have base64 there.
IDS = ("traceId", "spanId", "parentSpanId")


def schema():
    """The module of the messages, and what reads JSON by it."""
    try:
        from google.protobuf import json_format
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
    except ImportError as error:
        common.missing(f"the schema of OTLP ({error})")
    return trace_service_pb2, json_format


def read(body):
    """The message that a body stands for. Fails for a field that the schema does not have."""
    messages, json_format = schema()
    said = json.loads(body)
    for resource in said["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in set(IDS) & set(span):
                    span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return json_format.Parse(json.dumps(said), messages.ExportTraceServiceRequest())


def receiver(test):
    """Its address, and the bodies that it got."""
    bodies = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    test.addCleanup(server.server_close)
    test.addCleanup(server.shutdown)
    return f"127.0.0.1:{server.server_port}", bodies


class Traces(unittest.TestCase):
    def test_spans_are_what_opentelemetry_takes(self):
        """Catches: a span with a field, a type or an id that receivers refuse or do not know."""
        schema()
        address, bodies = receiver(self)
        engine = common.engine(self, "--tokens", "5")
        path = os.path.join(common.folder(self), "config.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"""
server: {{listen: "127.0.0.1:0", workers: 1, cpu_affinity: "off"}}
backends: [{{url: "http://{engine}", name: e, engine: vllm}}]
tracing: {{otlp: {{endpoint: "http://{address}"}}}}
""")
        proxy = common.Process(self, [common.binary("llmproxy"), "--config", path])
        at = common.listening(proxy)
        body = {"model": "m", "stream": True, "stream_options": {"include_usage": True},
                "messages": [{"role": "user", "content": "hi"}]}
        fields = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        self.assertEqual(ask(at, "/v1/chat/completions", body, fields)[0], 200)
        self.assertEqual(ask(at, "/nowhere/at/all")[0], 404)
        await_some("two spans", lambda: sum(len(spans(body)) for body in bodies) == 2)
        told = [span for body in bodies for span in spans(body)]
        chat = next(span for span in told if span.name == "chat m")
        self.assertEqual((chat.trace_id.hex(), chat.parent_span_id.hex()), (TRACE, PARENT))
        self.assertEqual((len(chat.span_id), chat.kind), (8, chat.SPAN_KIND_SERVER))
        self.assertGreaterEqual(chat.end_time_unix_nano, chat.start_time_unix_nano)
        values = {one.key: one.value for one in chat.attributes}
        self.assertEqual(len(values), len(chat.attributes), "an attribute stands twice")
        self.assertEqual(values["gen_ai.provider.name"].string_value, "vllm")
        self.assertEqual(values["gen_ai.usage.output_tokens"].int_value, 5)
        self.assertEqual(values["http.response.status_code"].int_value, 200)
        self.assertTrue(values["llmproxy.stream"].bool_value)
        self.assertEqual([event.name for event in chat.events], ["llmproxy.first_token"])
        resource = read(bodies[0]).resource_spans[0].resource.attributes
        self.assertIn("service.name", {one.key for one in resource})

    def test_the_schema_refuses_what_it_does_not_know(self):
        """Catches: a check that takes everything."""
        _, json_format = schema()
        wrong = {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceID": "00"}]}]}]}
        with self.assertRaises(json_format.ParseError):
            read(json.dumps(wrong))


def spans(body):
    return read(body).resource_spans[0].scope_spans[0].spans
