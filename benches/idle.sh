#!/usr/bin/env bash
# Holds ten thousand idle connections open, and a hundred whose header never ends, and says what they cost: memory for each,
# and what the other clients notice. Fails where that is beyond the bounds below, or where a request of the others failed.
#
#   benches/idle.sh [CONNECTIONS]      LOCKGATE=target/release/lockgate, PROFILE of the build by default: dev
set -euo pipefail
cd "$(dirname "$0")/.."

connections=${1:-10000}
lockgate=$(realpath "${LOCKGATE:-target/debug/lockgate}")
slow=100
# Resident memory of one idle connection, in KiB, and what the p99 of the others may grow to: so many times what it is
# without them, and some milliseconds for a machine that does something else as well.
memory_max=40
times_max=2
more_ms=5

command -v wrk >/dev/null || { echo "error: there is no wrk" >&2; echo "hint: apt-get install wrk" >&2; exit 1; }
ulimit -n "$(ulimit -Hn)"
if [ "$(ulimit -n)" != unlimited ] && [ "$(ulimit -n)" -lt $((connections + slow + 500)) ]; then
    echo "error: $(ulimit -n) open files are too few for $connections connections" >&2
    echo "hint: ulimit -Hn $((connections + slow + 500)), as root" >&2
    exit 1
fi

dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$dir"' EXIT

mkdir "$dir/origin" "$dir/gateway"
cat >"$dir/origin/lockgate.yaml" <<EOF
server: { access_log: off, watch: false }
listeners: ["127.0.0.1:8082"]
admin: { address: "127.0.0.1:9903" }
routes: [{ respond: { body: "hello\n" } }]
EOF
cat >"$dir/gateway/lockgate.yaml" <<EOF
server:
  access_log: off
  watch: false
  limits:
    connections: $((connections + 1000))
    connections_per_address: $((connections + 1000))
    # Longer than this runs: what the connections cost is asked, not how they are cut off.
    idle_timeout: 10m
    read_timeout: 5m
listeners: ["127.0.0.1:8081"]
admin: { address: "127.0.0.1:9902" }
upstreams: { app: ["127.0.0.1:8082"] }
routes: [{ upstream: app }]
EOF
start() {
    (cd "$dir/$1" && exec "$lockgate" run --config lockgate.yaml) >"$dir/$1.log" 2>&1 &
    for _ in $(seq 200); do
        if curl -fs -o /dev/null "http://127.0.0.1:$2/readyz"; then return; fi
        sleep 0.1
    done
    echo "error: $1 does not start" >&2
    cat "$dir/$1.log" >&2
    exit 1
}
start origin 9903
start gateway 9902
gateway=$!

metric() { curl -s http://127.0.0.1:9902/metrics | awk -v name="$1" '$1 ~ "^" name "([{]|$)" { sum += $2 } END { print sum + 0 }'; }
resident() { awk '/^VmRSS/ { print $2 }' "/proc/$gateway/status"; }
load() { wrk -t 1 -c 32 -d "$1" --latency http://127.0.0.1:8081/ >"$dir/wrk"; }
# In microseconds.
p99() { awk '$1 == "99%" { value = $2 + 0; if ($2 ~ /ms$/) value *= 1000; else if ($2 !~ /us$/) value *= 1000000; printf "%d\n", value }' "$dir/wrk"; }
# wrk leaves at its end without waiting for answers under way; the gateway counts these as clients that are gone.
failed() { curl -s http://127.0.0.1:9902/metrics | awk '/^lockgate_errors_total[{]/ && !/kind="client_gone"/ { sum += $2 } END { print sum + 0 }'; }

# What the first requests bring along (threads, pools, the allocator's share) is there before anything is counted.
load 3s
load 8s
alone=$(p99)
bad=0
if grep -q -E 'Non-2xx|Socket errors' "$dir/wrk"; then bad=1; fi
before=$(resident)

# Each has one answer, and then nothing more to say.
python3 - "$connections" "$slow" "$dir/open" <<'EOF' &
import socket, sys, time

idle, slow = [], []
for _ in range(int(sys.argv[1])):
    connection = socket.create_connection(("127.0.0.1", 8081))
    connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    answer = b""
    while not answer.endswith(b"hello\n"):
        piece = connection.recv(4096)
        assert piece, answer
        answer += piece
    idle.append(connection)
for _ in range(int(sys.argv[2])):
    connection = socket.create_connection(("127.0.0.1", 8081))
    connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: ")
    slow.append(connection)
open(sys.argv[3], "w").close()
while True:
    for connection in slow:
        connection.sendall(b"x")
    time.sleep(0.5)
EOF
holder=$!
while [ ! -e "$dir/open" ]; do
    kill -0 "$holder" 2>/dev/null || { echo "error: the connections could not be made" >&2; exit 1; }
    sleep 0.1
done
after=$(resident)
load 8s
beside=$(p99)
if grep -q -E 'Non-2xx|Socket errors' "$dir/wrk"; then bad=1; fi
open=$(metric lockgate_connections)
kill "$holder"

each=$(((after - before) * 10 / (connections + slow)))
printf 'connections open: %d, idle or slow: %d\n' "$open" $((connections + slow))
printf 'resident memory: %d KiB before, %d KiB after: %d.%d KiB for each\n' "$before" "$after" $((each / 10)) $((each % 10))
printf 'p99 of the others: %d µs alone, %d µs beside them\n' "$alone" "$beside"
printf 'requests: %d, of which failed: %d\n' "$(metric lockgate_requests_total)" "$(failed)"
if [ "$bad" != 0 ] || [ "$(failed)" != 0 ]; then echo "error: requests failed" >&2; bad=1; fi
if [ "$open" -lt $((connections + slow)) ]; then echo "error: connections were closed" >&2; bad=1; fi
if [ "$each" -gt $((memory_max * 10)) ]; then echo "error: more than $memory_max KiB for each" >&2; bad=1; fi
if [ "$beside" -gt $((alone * times_max + more_ms * 1000)) ]; then echo "error: the others wait too long" >&2; bad=1; fi
exit "$bad"
