#!/usr/bin/env python3
"""Measures what the comparison cannot see, beside the figure that each is meant to have: how soon a gateway answers after
a restart with a warm cache and ten filters, what it holds when it is idle with three, and what 2,000 swaps of the
snapshot cost under load.

    benches/limits.py [GATEWAY]        target/release/lockgate by default; filters are looked for in target/library

Fails where a request failed. Figures are printed, and judged by whoever reads them: they are those of a machine.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

RESTARTS = 9
SWAPS = 2_000
# Outside of the range of ports that the kernel gives to clients.
PORT, ADMIN = 18_080, 18_081


def configuration(filters):
    names = [f"f{number}" for number in range(filters)]
    lines = [
        f'listeners: ["127.0.0.1:{PORT}"]',
        f'admin: {{ address: "127.0.0.1:{ADMIN}" }}',
        "server: { access_log: off, watch: false, state_dir: state, cache_dir: cache }",
        "filters:",
    ]
    for name in names:
        lines.append(f"  {name}: {{ component: headers.wasm, settings: {{ response: {{ set: {{ x-{name}: stable }} }} }} }}")
    lines += [
        f"routes: [{{ filters: [{', '.join(names)}], respond: {{ body: ok }} }}]",
        "rollouts:",
        "  next: { filter: f0, canary: { settings: { response: { set: { x-f0: canary } } } }, weight: 1%, key: [client_ip] }",
    ]
    return "\n".join(lines) + "\n"


class Gateway:
    """A gateway in the current folder, until the end of the block."""

    def __init__(self, program, filters):
        with open("lockgate.yaml", "w") as file:
            file.write(configuration(filters))
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [program, "run", "--config", "lockgate.yaml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=1)
                connection.request("GET", "/")
                status = connection.getresponse().status
                break
            except (OSError, http.client.HTTPException):
                if self.process.poll() is not None or time.perf_counter() - began > 60:
                    raise SystemExit("error: the gateway does not serve")
                time.sleep(0.0005)
        self.first_answer = time.perf_counter() - began
        if status != 200:
            raise SystemExit(f"error: the gateway answers {status}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def memory(self, field):
        """Returns a line of the process's status, in MiB."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(rf"^{field}:\s+(\d+)", file.read(), re.M)[1]) / 1024


def ask(connection, method, path, body=None):
    connection.request(method, path, body and json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    text = reply.read().decode()
    if reply.status >= 300:
        raise SystemExit(f"error: {method} {path} answers {reply.status}: {text}")
    return text


def metric(connection, name):
    lines = ask(connection, "GET", "/metrics").splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[ {{]", line))


def restart(program):
    Gateway(program, 10).__exit__()
    took = []
    for _ in range(RESTARTS):
        with Gateway(program, 10) as gateway:
            took.append(gateway.first_answer * 1e3)
    print(
        f"restart with a warm cache and ten filters: first answer after {statistics.median(took):.0f} ms "
        f"({min(took):.0f} to {max(took):.0f}, {RESTARTS} times); meant: 50"
    )


def idle(program):
    with Gateway(program, 3) as gateway:
        # Threads that have done their share of the start are over by then.
        time.sleep(3)
        resident, anonymous = gateway.memory("VmRSS"), gateway.memory("RssAnon")
    print(f"idle with three filters: {resident:.0f} MiB resident, of which {anonymous:.0f} its own; meant: 30")


def swaps(program):
    with Gateway(program, 3) as gateway:
        admin = http.client.HTTPConnection("127.0.0.1", ADMIN)
        load = ["wrk", "-t1", "-c32", f"http://127.0.0.1:{PORT}/"]
        subprocess.run([*load, "-d3s"], check=True, stdout=subprocess.DEVNULL)
        before, requests = gateway.memory("VmRSS"), metric(admin, "lockgate_requests_total")
        generation = metric(admin, "lockgate_generation")
        wrk = subprocess.Popen([*load, "-d600s"], stdout=subprocess.PIPE, text=True)
        began = time.perf_counter()
        for number in range(SWAPS):
            ask(admin, "PUT", "/api/v1/rollouts/next/weight", {"weight": f"{1 + number % 99}%"})
        took = time.perf_counter() - began
        after = gateway.memory("VmRSS")
        wrk.send_signal(signal.SIGINT)
        said = wrk.communicate()[0]
        # wrk leaves without waiting for answers under way: clients that are gone are its own.
        lines = ask(admin, "GET", "/metrics").splitlines()
        errors = [line for line in lines if line.startswith("lockgate_errors_total{") and "client_gone" not in line]
        failed = sum(float(line.rsplit(" ", 1)[1]) for line in errors)
        swapped = metric(admin, "lockgate_generation") - generation
        requests = metric(admin, "lockgate_requests_total") - requests
        each = metric(admin, "lockgate_swap_duration_seconds_sum") / metric(admin, "lockgate_swap_duration_seconds_count")
    print(
        f"{swapped:.0f} swaps in {took:.1f} s under {requests / took:.0f} requests a second: {each * 1e6:.0f} µs each; meant: 1000; "
        f"memory {100 * (after - before) / before:+.0f} %; meant: at most +5; {failed:.0f} requests failed"
    )
    if failed or "Non-2xx" in said or "Socket errors" in said:
        print(said, file=sys.stderr)
        raise SystemExit("error: requests failed")


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    program = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else f"{root}/target/release/lockgate")
    component = f"{root}/target/library/headers.wasm"
    for needed, hint in [(program, "cargo build --release -p lockgate"), (component, "make limits")]:
        if not os.path.exists(needed):
            raise SystemExit(f"error: there is no {needed}\nhint: {hint}")
    if shutil.which("wrk") is None:
        raise SystemExit("error: there is no wrk\nhint: apt-get install wrk")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            raise SystemExit(f"error: something listens on 127.0.0.1:{PORT} already")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        shutil.copy(component, ".")
        restart(program)
        idle(program)
        swaps(program)
        os.chdir(root)


main()
