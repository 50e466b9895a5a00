#!/usr/bin/python3
"""Calls of gRPC through the gateway, by the stack that most people use: client and server of grpcio, with the gateway
between them, in the clear (h2c) and by TLS (h2), over an upstream of HTTP/2.

    make conformance
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc

SERVICE = "conformance.Calls"
# Longer than anything takes here, also on a machine that does something else as well.
PATIENCE = 30


def same(data):
    return data


class Server:
    """Does what its methods are called after. Messages are bytes: what they mean is not the gateway's matter."""

    def __init__(self):
        self.cancelled = threading.Event()
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream),
            "ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
            "Never": grpc.unary_unary_rpc_method_handler(self.never),
        }
        self.server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def unary(self, request, context):
        context.set_trailing_metadata((("x-trailer", "kept"),))
        if request == b"fail":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as it was told: 100 % \u00fc")
        given = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-seen", given.get("x-sent", "")),))
        return request

    def client_stream(self, requests, context):
        return b"".join(requests)

    def server_stream(self, request, context):
        for index in range(int(request)):
            yield str(index).encode()
        if request == b"3":
            context.abort(grpc.StatusCode.DATA_LOSS, "after three")

    def both(self, requests, context):
        for request in requests:
            yield request

    def never(self, request, context):
        context.add_callback(self.cancelled.set)
        self.cancelled.wait(PATIENCE)
        return request


class Gateway:
    """The gateway in a folder of its own."""

    def __init__(self, binary, folder, upstream):
        cert, key = folder / "cert.pem", folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
            + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
            + ["-keyout", str(key), "-out", str(cert)],
            check=True,
            capture_output=True,
        )
        self.root = cert.read_bytes()
        config = {
            "server": {"access_log": "off"},
            "listeners": [
                "127.0.0.1:0",
                {"address": "127.0.0.2:0", "tls": {"certificates": [{"cert": str(cert), "key": str(key)}]}},
            ],
            "admin": {"address": "127.0.0.1:0"},
            "upstreams": {"calls": {"endpoints": [f"127.0.0.1:{upstream}"], "protocol": "h2c"}},
            "routes": [{"upstream": "calls"}],
        }
        # JSON is YAML, too.
        (folder / "lockgate.yaml").write_text(json.dumps(config))
        self.process = subprocess.Popen(
            [binary, "--log-format", "json", "run", "--config", str(folder / "lockgate.yaml")],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.plain = self.secure = None
        while not (self.plain and self.secure):
            line = self.process.stderr.readline()
            if not line:
                raise SystemExit("error: the gateway does not start")
            said = json.loads(line)
            said = said.get("fields", said)
            if said.get("message") == "listening" and said.get("kind") == "http":
                host, port = said["address"].rsplit(":", 1)
                if host == "127.0.0.1":
                    self.plain = int(port)
                else:
                    self.secure = int(port)
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def channels(self):
        yield "h2c", grpc.insecure_channel(f"127.0.0.1:{self.plain}")
        credentials = grpc.ssl_channel_credentials(self.root)
        named = (("grpc.ssl_target_name_override", "localhost"),)
        yield "tls", grpc.secure_channel(f"127.0.0.2:{self.secure}", credentials, named)

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)


def unary(channel, server):
    call = channel.unary_unary(f"/{SERVICE}/Unary", same, same)
    for message in (b"", b"hello", bytes(1_000_000)):
        answer, done = call.with_call(message, metadata=(("x-sent", "this"),), timeout=PATIENCE)
        assert answer == message, len(answer)
        assert dict(done.initial_metadata())["x-seen"] == "this", done.initial_metadata()
        assert dict(done.trailing_metadata())["x-trailer"] == "kept", done.trailing_metadata()
        assert done.code() is grpc.StatusCode.OK


def failing(channel, server):
    try:
        channel.unary_unary(f"/{SERVICE}/Unary", same, same)(b"fail", timeout=PATIENCE)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error.code()
        assert error.details() == "as it was told: 100 % \u00fc", error.details()
        assert dict(error.trailing_metadata())["x-trailer"] == "kept", error.trailing_metadata()
    else:
        raise AssertionError("it did not fail")


def unknown(channel, server):
    try:
        channel.unary_unary(f"/{SERVICE}/Nothing", same, same)(b"", timeout=PATIENCE)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error.code()
    else:
        raise AssertionError("there is no such method")


def client_stream(channel, server):
    call = channel.stream_unary(f"/{SERVICE}/ClientStream", same, same)
    pieces = [bytes([index % 256]) * 1_000 for index in range(500)]
    assert call(iter(pieces), timeout=PATIENCE) == b"".join(pieces)
    assert call(iter([]), timeout=PATIENCE) == b""


def server_stream(channel, server):
    call = channel.unary_stream(f"/{SERVICE}/ServerStream", same, same)
    assert [int(piece) for piece in call(b"1000", timeout=PATIENCE)] == list(range(1000))
    assert list(call(b"0", timeout=PATIENCE)) == []
    got = []
    try:
        for piece in call(b"3", timeout=PATIENCE):
            got.append(piece)
    except grpc.RpcError as error:
        assert (got, error.code()) == ([b"0", b"1", b"2"], grpc.StatusCode.DATA_LOSS), (got, error.code())
    else:
        raise AssertionError("the status behind the messages is lost")


def both(channel, server):
    """Each message waits for the answer to the one before: nothing on the way may gather them."""
    answered = threading.Semaphore(1)

    def messages():
        for index in range(100):
            assert answered.acquire(timeout=PATIENCE)
            yield str(index).encode()

    got = []
    for answer in channel.stream_stream(f"/{SERVICE}/Both", same, same)(messages(), timeout=PATIENCE):
        got.append(int(answer))
        answered.release()
    assert got == list(range(100)), got


def deadline(channel, server):
    server.cancelled.clear()
    began = time.monotonic()
    try:
        channel.unary_unary(f"/{SERVICE}/Never", same, same)(b"", timeout=0.5)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error.code()
    else:
        raise AssertionError("it answered")
    assert time.monotonic() - began < PATIENCE / 2
    # The server learns that nobody waits any more.
    assert server.cancelled.wait(PATIENCE)


def cancelling(channel, server):
    server.cancelled.clear()
    call = channel.unary_unary(f"/{SERVICE}/Never", same, same).future(b"", timeout=PATIENCE)
    time.sleep(0.2)
    call.cancel()
    assert server.cancelled.wait(PATIENCE)


def many(channel, server):
    """Calls at the same time, on one connection."""
    call = channel.unary_unary(f"/{SERVICE}/Unary", same, same)
    calls = [(index, call.future(str(index).encode(), timeout=PATIENCE)) for index in range(500)]
    for index, pending in calls:
        assert int(pending.result()) == index


CASES = [unary, failing, unknown, client_stream, server_stream, both, deadline, cancelling, many]


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    server, failures = Server(), 0
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(sys.argv[1], Path(folder), server.port)
        try:
            for name, channel in gateway.channels():
                for case in CASES:
                    try:
                        case(channel, server)
                        verdict = "ok"
                    except (AssertionError, grpc.RpcError) as error:
                        failures += 1
                        verdict = f"FAILED: {error!r}"
                    print(f"grpc over {name}: {case.__name__}: {verdict}")
                channel.close()
        finally:
            gateway.stop()
            server.server.stop(None)
    if failures:
        raise SystemExit(f"error: {failures} calls did not end as they should")


if __name__ == "__main__":
    main()
