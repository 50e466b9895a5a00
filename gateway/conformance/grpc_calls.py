#!/usr/bin/python3
"""Calls of gRPC through the gateway, by the stack that most people use: client and server of grpcio, with the gateway
between them, in the clear (h2c) and by TLS (h2), over an upstream of HTTP/2; and the same server's calls as a page makes them,
by gRPC-Web.

    make conformance
"""

import base64
import http.client
import ssl
import sys
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc

from gateway import PATIENCE, Gateway

SERVICE = "conformance.Calls"


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


def config(upstream):
    """Calls go to the server, those of one service to where nobody is; pages may call as well."""
    return {
        "upstreams": {
            "calls": {"endpoints": [f"127.0.0.1:{upstream}"], "protocol": "h2c"},
            "away": {"endpoints": ["127.0.0.1:1"], "protocol": "h2c"},
        },
        "routes": [
            {"upstream": "calls", "grpc_web": True},
            {"upstream": "away", "match": {"path": "/conformance.Away/*"}},
            {"upstream": "calls", "match": {"path": "/conformance.Few/*"}, "rate_limits": [{"requests": 1, "per": "1h"}]},
        ],
    }


def channels(gateway):
    yield "h2c", grpc.insecure_channel(f"127.0.0.1:{gateway.plain}")
    credentials = grpc.ssl_channel_credentials(gateway.root)
    named = (("grpc.ssl_target_name_override", "localhost"),)
    yield "tls", grpc.secure_channel(f"127.0.0.2:{gateway.secure}", credentials, named)


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


def faults(channel, server):
    """What the gateway itself has to say, clients are told as by a server."""
    for service, code, details in (
        ("Away", grpc.StatusCode.UNAVAILABLE, "upstream unavailable"),
        ("Few", grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests"),
    ):
        told = None
        for _ in range(2):
            try:
                channel.unary_unary(f"/conformance.{service}/Unary", same, same)(b"", timeout=PATIENCE)
            except grpc.RpcError as error:
                told = (error.code(), error.details())
        assert told == (code, details), told


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


class Binary:
    """A page's call whose bodies are bytes."""

    kind = "application/grpc-web+proto"

    @staticmethod
    def write(data):
        return data

    @staticmethod
    def read(data):
        return data


class Text:
    """One whose bodies are base64, in pieces that are padded each by itself."""

    kind = "application/grpc-web-text+proto"

    @staticmethod
    def write(data):
        return base64.b64encode(data[:4]) + base64.b64encode(data[4:])

    @staticmethod
    def read(data):
        return b"".join(base64.b64decode(data[at : at + 4], validate=True) for at in range(0, len(data), 4))


def call(connection, form, method, message):
    """Calls as a page does. Returns the messages of the answer, and its trailers."""
    body = form.write(b"\0" + len(message).to_bytes(4, "big") + message)
    headers = {"content-type": form.kind, "x-grpc-web": "1", "x-sent": "this"}
    # A server that answers before it has read a call cuts the connection off. Browsers try again; this client does not.
    connection.close()
    connection.request("POST", f"/{SERVICE}/{method}", body, headers)
    response = connection.getresponse()
    data = form.read(response.read())
    assert response.status == 200, response.status
    messages, trailers = [], dict(response.getheaders())
    while data:
        flag, length = data[0], int.from_bytes(data[1:5], "big")
        frame, data = data[5 : 5 + length], data[5 + length :]
        if flag == 0x80:
            assert not data, "the trailers are not the last"
            trailers |= dict(line.split(":", 1) for line in frame.decode().splitlines())
        else:
            messages.append(frame)
    return messages, trailers


def web_unary(connection, form):
    for message in (b"", b"hello", bytes(range(256)) * 2_000):
        messages, trailers = call(connection, form, "Unary", message)
        assert messages == [message], len(messages)
        assert (trailers["grpc-status"], trailers["x-trailer"], trailers["x-seen"]) == ("0", "kept", "this"), trailers


def web_failing(connection, form):
    messages, trailers = call(connection, form, "Unary", b"fail")
    assert (messages, trailers["grpc-status"]) == ([], "9"), trailers
    assert trailers["grpc-message"] == "as it was told: 100 %25 %C3%BC", trailers


def web_unknown(connection, form):
    assert call(connection, form, "Nothing", b"")[1]["grpc-status"] == "12"


def web_server_stream(connection, form):
    messages, trailers = call(connection, form, "ServerStream", b"1000")
    assert [int(message) for message in messages] == list(range(1000))
    assert trailers["grpc-status"] == "0", trailers
    messages, trailers = call(connection, form, "ServerStream", b"3")
    assert (len(messages), trailers["grpc-status"]) == (3, "15"), trailers


def connections(gateway):
    yield "http/1.1", http.client.HTTPConnection("127.0.0.1", gateway.plain, timeout=PATIENCE)
    # Whose certificate it is, the calls by TLS above have looked at.
    context = ssl._create_unverified_context()
    yield "http/1.1 and tls", http.client.HTTPSConnection("127.0.0.2", gateway.secure, timeout=PATIENCE, context=context)


WEB_CASES = [web_unary, web_failing, web_unknown, web_server_stream]
CASES = [unary, failing, unknown, faults, client_stream, server_stream, both, deadline, cancelling, many]


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    server, failures = Server(), 0
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(sys.argv[1], Path(folder), config(server.port))
        try:
            for name, channel in channels(gateway):
                for case in CASES:
                    try:
                        case(channel, server)
                        verdict = "ok"
                    except (AssertionError, grpc.RpcError) as error:
                        failures += 1
                        verdict = f"FAILED: {error!r}"
                    print(f"grpc over {name}: {case.__name__}: {verdict}")
                channel.close()
            for name, connection in connections(gateway):
                for form in (Binary, Text):
                    for case in WEB_CASES:
                        try:
                            case(connection, form)
                            verdict = "ok"
                        except (AssertionError, http.client.HTTPException) as error:
                            failures += 1
                            verdict = f"FAILED: {error!r}"
                        print(f"grpc-web over {name}, {form.kind}: {case.__name__}: {verdict}")
                connection.close()
        finally:
            gateway.stop()
            server.server.stop(None)
    if failures:
        raise SystemExit(f"error: {failures} calls did not end as they should")


if __name__ == "__main__":
    main()
