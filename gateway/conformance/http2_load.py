#!/usr/bin/python3
"""Requests by HTTP/2, many at a time on each connection, by nghttp2's `h2load`: none of them may fail.

    make conformance
"""

import asyncio
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from gateway import Gateway

REQUESTS, CLIENTS, STREAMS = 10_000, 10, 100
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\ncontent-type: text/plain\r\n\r\n" + b"a" * 1024
BODY = 20_000
# Of h2load, which would wait for an answer for ever.
LONGEST = 300


class Origin(asyncio.Protocol):
    """Answers each request, whose body it has read, with a KiB."""

    def connection_made(self, transport):
        self.transport, self.held = transport, b""

    def data_received(self, data):
        self.held += data
        while b"\r\n\r\n" in self.held:
            head, rest = self.held.split(b"\r\n\r\n", 1)
            length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
            length = int(length[1]) if length else 0
            if len(rest) < length:
                return
            self.held = rest[length:]
            self.transport.write(ANSWER)


def origin():
    """Starts it on a thread of its own. Returns its port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Origin, "127.0.0.1", 0))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return server.sockets[0].getsockname()[1]


def load(url, *options):
    command = ["h2load", f"--requests={REQUESTS}", f"--clients={CLIENTS}", f"--max-concurrent-streams={STREAMS}"]
    said = subprocess.run(command + [*options, url], check=True, capture_output=True, text=True, timeout=LONGEST).stdout
    counts = {what: int(count) for count, what in re.findall(r"(\d+) ([a-z0-9]+)", re.search("^requests: (.*)$", said, re.M)[1])}
    counts |= {what: int(count) for count, what in re.findall(r"(\d+) ([1-5]xx)", re.search("^status codes: (.*)$", said, re.M)[1])}
    protocol = re.search("^Application protocol: (.*)$", said, re.M)[1]
    assert (counts["succeeded"], counts["2xx"], counts["failed"]) == (REQUESTS, REQUESTS, 0), said
    assert protocol in ("h2", "h2c"), said
    return protocol, re.search("^finished in (.*)$", said, re.M)[1]


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    config = {
        "upstreams": {"origin": {"endpoints": [f"127.0.0.1:{origin()}"]}},
        "routes": [{"upstream": "origin"}, {"match": {"path": "/fixed"}, "respond": {"status": 200, "body": "fixed"}}],
    }
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(sys.argv[1], Path(folder), config)
        body = Path(folder) / "body"
        body.write_bytes(b"b" * BODY)
        secure, plain = f"https://127.0.0.2:{gateway.secure}", f"http://127.0.0.1:{gateway.plain}"
        cases = {
            "by tls": [f"{secure}/"],
            "by tls, with bodies": [f"{secure}/", f"--data={body}"],
            "by tls, answered by the gateway": [f"{secure}/fixed"],
            "in the clear": [f"{plain}/"],
        }
        try:
            for name, (url, *options) in cases.items():
                try:
                    protocol, finished = load(url, *options)
                    verdict = f"{protocol}, {finished}: ok"
                except (AssertionError, subprocess.SubprocessError) as error:
                    failures += 1
                    verdict = f"FAILED: {error}"
                print(f"{REQUESTS} requests {name}, {CLIENTS} x {STREAMS} at a time: {verdict}")
        finally:
            gateway.stop()
    if failures:
        raise SystemExit(f"error: {failures} runs had requests that failed")


if __name__ == "__main__":
    main()
