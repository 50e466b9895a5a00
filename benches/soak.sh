#!/usr/bin/env bash
# Replaces a filter's component every second for a minute, under load, and says what the clients and the gateway saw of it;
# then asks for a million hosts that nobody has heard of. Fails where a request failed, where a version was never seen or an
# old one still is, where one kept an instance, where memory grew, or where a request made a series.
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

# The calls of each version of the filter that is replaced, by the first six digits of its component's digest.
calls() {
    curl -s http://127.0.0.1:9901/metrics | awk '
        /^lockgate_filter_calls_total[{]/ && /filter="headers"/ {
            split($1, at, "version=\""); sum[substr(at[2], 1, 6)] += $2
        }
        END { for (version in sum) printf "%s %d\n", version, sum[version] }' | sort
}
digest() { sha256sum "$component" | cut -c 1-6; }

# What the first versions bring along (threads, pools, the allocator's share) is there before anything is counted.
wrk -t 1 -c 32 -d 3s http://127.0.0.1:8080/ >/dev/null
for version in 1 2 3; do replace "$version"; sleep 2; done
before=$(resident)
swaps=$(metric lockgate_generation)
first=$(digest)
calls_before=$(calls)

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
last=$(digest)
calls_after=$(calls)
curl -s -o /dev/null "http://127.0.0.1:8080/[1-100]"
calls_end=$(calls)

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
# Which versions were called between two looks.
called() { join -a 2 -e 0 -o 0,1.2,2.2 <(echo "$1") <(echo "$2") | awk '$3 > $2 { print $1 }'; }
under_load=$(called "$calls_before" "$calls_after")
at_the_end=$(called "$calls_after" "$calls_end")
printf 'versions that answered under load: %d, at the end: %s (the file is %s)\n' \
    "$(echo "$under_load" | wc -w)" "$(echo $at_the_end)" "$last"

# Every request another host, and every run other hosts.
cat >"$dir/hosts.lua" <<'LUA'
function init() math.randomseed(os.time()) end
function request() return wrk.format("GET", "/", { Host = string.format("h%015d.example", math.random(0, 2 ^ 49)) }) end
LUA
hosts=${HOSTS:-1000000}
series() { curl -s http://127.0.0.1:9901/metrics | grep -vc '^#'; }
asked=$(metric lockgate_requests_total)
series_before=$(series)
while [ $(($(metric lockgate_requests_total) - asked)) -lt "$hosts" ]; do
    wrk -t 1 -c 32 -d 5s -s "$dir/hosts.lua" http://127.0.0.1:8080/ >>"$dir/hosts"
done
series_after=$(series)
printf 'random hosts: %d, series: %d before, %d after\n' \
    $(($(metric lockgate_requests_total) - asked)) "$series_before" "$series_after"

bad=0
if ! grep -q "^$first$" <<<"$under_load" || [ "$(echo "$under_load" | wc -w)" -lt 2 ]; then
    echo "error: not both an old and a new version were seen" >&2; bad=1
fi
if [ "$at_the_end" != "$last" ]; then echo "error: at the end another version than the file's was seen" >&2; bad=1; fi
if [ "$series_after" -gt "$series_before" ]; then echo "error: requests made series" >&2; bad=1; fi
if grep -q -E 'Non-2xx' "$dir/hosts"; then echo "error: requests with random hosts failed" >&2; bad=1; fi
if grep -q -E 'Non-2xx|Socket errors' "$dir/wrk" || [ "$failed" != 0 ]; then echo "error: requests failed" >&2; bad=1; fi
if [ "$instances" != 0 ]; then echo "error: instances were left" >&2; bad=1; fi
if [ $((after * 100)) -gt $((before * 125)) ]; then echo "error: memory grew by more than a quarter" >&2; bad=1; fi
exit "$bad"
