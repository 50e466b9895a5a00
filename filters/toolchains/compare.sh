#!/usr/bin/env bash
# Builds one handler by three toolchains, and a server that others wrote, the example of the crate `wstd`; compares what the
# components answer: the handlers with each other behind the gateway, and all with what they answer under `wasmtime serve`.
#
#   filters/toolchains/compare.sh      LOCKGATE=target/debug/lockgate, WASMTIME: that binary; without it, this part is left out
set -euo pipefail
cd "$(dirname "$0")/../.."

lockgate=${LOCKGATE:-target/debug/lockgate}
here=filters/toolchains
out=$PWD/target/toolchains
mkdir -p "$out"
for tool in npm python3 curl; do
    command -v $tool >/dev/null || { echo "error: there is no $tool" >&2; exit 1; }
done
[ -x "$lockgate" ] || { echo "error: there is no $lockgate" >&2; echo "hint: cargo build -p lockgate" >&2; exit 1; }

# The WIT of WASI comes with the crate that implements it here.
crate=$(cargo metadata --format-version 1 --locked |
    python3 -c 'import json, sys
print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "wasmtime-wasi-http"))')
rm -rf "$out/wit"
mkdir -p "$out/wit"
cp "$here/world.wit" "$out/wit/"
cp -r "$(dirname "$crate")/wit/deps" "$out/wit/deps"
chmod -R u+w "$out/wit"

echo "toolchains: Rust"
cargo build --quiet --locked --release --target wasm32-wasip2 --manifest-path "$here/rust/Cargo.toml" --target-dir "$out/rust"
cp "$out/rust/wasm32-wasip2/release/handler.wasm" "$out/rust.wasm"

echo "toolchains: JavaScript"
mkdir -p "$out/js"
cp "$here/js/package.json" "$out/js/"
(cd "$out/js" && npm install --silent --no-audit --no-fund >/dev/null)
"$out/js/node_modules/.bin/jco" componentize "$here/js/handler.js" --wit "$out/wit" -n handler -o "$out/js.wasm" >/dev/null

echo "toolchains: Python"
[ -d "$out/python" ] || python3 -m venv "$out/python"
"$out/python/bin/pip" install --quiet --disable-pip-version-check componentize-py==0.25.1
rm -rf "$out/app"
mkdir "$out/app"
cp "$here/python/app.py" "$out/app/"
(cd "$out/app" && "$out/python/bin/componentize-py" -d "$out/wit" -w handler componentize app -o "$out/python.wasm" >/dev/null)

# Of a version of its own, so that the answers are those of a known program. Each manifest is its own workspace, or it would
# be taken for a part of the one around it.
echo "toolchains: Rust, the example server of wstd 0.6.5"
mkdir -p "$out/wstd/fetch"
printf '[package]\nname = "fetch"\nedition = "2024"\n[lib]\npath = "lib.rs"\n[dependencies]\nwstd = "=0.6.5"\n[workspace]\n' > "$out/wstd/fetch/Cargo.toml"
: > "$out/wstd/fetch/lib.rs"
crate=$(cargo metadata --format-version 1 --manifest-path "$out/wstd/fetch/Cargo.toml" |
    python3 -c 'import json, sys
print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "wstd"))')
rm -rf "$out/wstd/source"
cp -r "$(dirname "$crate")" "$out/wstd/source"
chmod -R u+w "$out/wstd/source"
printf '\n[workspace]\n' >> "$out/wstd/source/Cargo.toml"
cargo build --quiet --release --target wasm32-wasip2 --example http_server --manifest-path "$out/wstd/source/Cargo.toml" --target-dir "$out/rust"
cp "$out/rust/wasm32-wasip2/release/examples/http_server.wasm" "$out/wstd.wasm"

trap 'kill $(jobs -p) 2>/dev/null || true; wait 2>/dev/null || true' EXIT
guests=(rust js python wstd)
cat > "$out/lockgate.yaml" <<YAML
listeners: ["127.0.0.1:18080"]
admin: { address: "unix:$out/admin.sock" }
server: { instance_memory: 256MiB }
functions:
$(for guest in "${guests[@]}"; do echo "  $guest: { component: $guest.wasm, limits: { memory: 256MiB } }"; done)
routes:
$(for guest in "${guests[@]}"; do echo "  - { match: { host: $guest.test }, function: $guest }"; done)
YAML
echo "toolchains: loading (a component with a JavaScript engine or a Python inside takes a while the first time)"
"$lockgate" run --config "$out/lockgate.yaml" >"$out/access.log" 2>"$out/lockgate.log" &
for _ in $(seq 1200); do grep -q '"message":"serving"' "$out/lockgate.log" && break || sleep 0.5; done

head -c 100000 /dev/urandom > "$out/body"

# What a client sees of a function's own: status, its headers, its bytes.
ask() {
    local url=$1 host=$2
    shift 2
    curl -s --max-time 60 -H "host: $host" -D "$out/header" -o "$out/answer" "$@" "$url"
    # Names of headers are the same in any case, and each server has its own.
    tr -d '\r' < "$out/header" | tr 'A-Z' 'a-z' | sed -n -e '1s/^http[^ ]* \([0-9]*\).*/\1/p' -e '/^content-type:/p' -e '/^x-guest:/p'
    sha256sum < "$out/answer"
}
answers() {
    local base=$1 host=$2
    ask "$base/hello?a=b&c=%20d" "$host"
    ask "$base/headers" "$host" -H 'x-ask: one' -H 'x-ask: two'
    ask "$base/put" "$host" -X PUT -d ''
    ask "$base/echo" "$host" --data-binary "@$out/body"
    ask "$base/echo" "$host" -X POST -d ''
    ask "$base/teapot" "$host"
    ask "$base/" "$host"
    ask "$base/response-status" "$host" -H 'x-response-status: 418'
}

failed=0
compare() {
    if cmp -s "$1" "$2"; then
        echo "toolchains: $3: the same, byte by byte"
    else
        echo "toolchains: $3: DIFFERENT" >&2
        diff "$1" "$2" >&2 || true
        failed=1
    fi
}
for guest in "${guests[@]}"; do
    answers http://127.0.0.1:18080 "$guest.test" > "$out/$guest.gateway"
    [ "$guest" = rust ] || [ "$guest" = wstd ] || compare "$out/rust.gateway" "$out/$guest.gateway" "$guest and rust, behind the gateway"
done
if [ -z "${WASMTIME:-}" ]; then
    echo "toolchains: WASMTIME is not set: the components are NOT compared with \`wasmtime serve\`"
    exit $failed
fi
port=18090
for guest in "${guests[@]}"; do
    port=$((port + 1))
    "$WASMTIME" serve -Scli --addr 127.0.0.1:$port "$out/$guest.wasm" >"$out/$guest.wasmtime.log" 2>&1 &
    for _ in $(seq 1200); do curl -s -o /dev/null "http://127.0.0.1:$port/" && break || sleep 0.5; done
    answers "http://127.0.0.1:$port" "$guest.test" > "$out/$guest.wasmtime"
    compare "$out/$guest.wasmtime" "$out/$guest.gateway" "$guest, under wasmtime serve and behind the gateway"
done
exit $failed
