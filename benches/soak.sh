#!/usr/bin/env bash
# Replaces a filter's component every second for a minute, under load, and says what the clients and the gateway saw of it.
# Fails where a request failed, where an old version kept an instance, or where memory grew.
#
#   benches/soak.sh [SECONDS]      LOCKGATE=target/release/lockgate, PROFILE of the build by default: dev
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
lockgate=${LOCKGATE:-target/debug/lockgate}
command -v wrk >/dev/null || { echo "error: there is no wrk" >&2; echo "hint: apt-get install wrk" >&2; exit 1; }

dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$dir"' EXIT

# The demo brings its own origin and configuration; only what is replaced is ours.
cp -r "${COMPONENTS:-target/library}" "$dir/library"
"$lockgate" demo --components "$dir/library" --dir "$dir/demo" >"$dir/out" 2>"$dir/log" &
gateway=$!
for _ in $(seq 200); do curl -fs -o /dev/null http://127.0.0.1:9901/readyz && break || sleep 0.1; done

metric() { curl -s http://127.0.0.1:9901/metrics | awk -v name="$1" '$1 ~ "^" name "([{]|$)" { sum += $2 } END { print sum + 0 }'; }
resident() { awk '/^VmRSS/ { print $2 }' "/proc/$gateway/status"; }

component=$(find "$dir/demo" -name headers.wasm | head -n 1)
[ -n "$component" ] || component="$dir/library/headers.wasm"
original=$(mktemp -p "$dir")
cp "$component" "$original"

# A custom section at the end changes a component's digest and nothing else: id 0, length, length of the name, name.
replace() {
    local name
    name=$(printf '%06d' "$1")
    { cat "$original"; printf '\x00\x07\x06%s' "$name"; } > "$component.new"
    mv "$component.new" "$component"
}

# What the first versions bring along (threads, pools, the allocator's share) is there before anything is counted.
wrk -t 1 -c 32 -d 3s http://127.0.0.1:8080/ >/dev/null
for version in 1 2 3; do replace "$version"; sleep 2; done
before=$(resident)
swaps=$(metric lockgate_generation)

wrk -t 1 -c 32 -d "${seconds}s" --latency http://127.0.0.1:8080/ >"$dir/wrk" &
load=$!
version=3
while kill -0 "$load" 2>/dev/null; do
    version=$((version + 1))
    replace "$version"
    sleep 1
done
wait "$load" || true
sleep 2

cat "$dir/wrk"
# wrk leaves at its end without waiting for answers under way; the gateway counts these as clients that are gone.
failed=$(curl -s http://127.0.0.1:9901/metrics | awk '/^lockgate_errors_total[{]/ && !/kind="client_gone"/ { sum += $2 } END { print sum + 0 }')
after=$(resident)
for _ in $(seq 100); do [ "$(metric lockgate_draining_snapshots)" = 0 ] && break || sleep 0.1; done
instances=$(metric lockgate_filter_instances)
printf 'versions written: %d, snapshots swapped: %d\n' $((version - 3)) $(($(metric lockgate_generation) - swaps))
printf 'requests: %d, of which failed: %d\n' "$(metric lockgate_requests_total)" "$failed"
printf 'resident memory: %d KiB before, %d KiB after\n' "$before" "$after"
printf 'instances that were left: %d, snapshots still draining: %d\n' "$instances" "$(metric lockgate_draining_snapshots)"
bad=0
if grep -q -E 'Non-2xx|Socket errors' "$dir/wrk" || [ "$failed" != 0 ]; then echo "error: requests failed" >&2; bad=1; fi
if [ "$instances" != 0 ]; then echo "error: instances were left" >&2; bad=1; fi
if [ $((after * 100)) -gt $((before * 125)) ]; then echo "error: memory grew by more than a quarter" >&2; bad=1; fi
exit "$bad"
