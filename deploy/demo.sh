#!/usr/bin/env bash
# One picture over a real server on this machine: bash deploy/demo.sh OUT.png
# Expects cloud-server and device-client on PATH, as `make demo` arranges. The exit code is the client's.
set -euo pipefail
export OMP_NUM_THREADS=1

out=${1:-demo.png}
map=${out%.png}--map.png
ready_s=60
log=$(mktemp)
server= client=

clean_up() {
    for child in $client $server; do
        kill "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    done
    rm -f "$log"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    echo "demo: $1" >&2
    sed 's/^/  /' "$log" >&2
    exit 1
}

# Port 0: the server takes a free port and names it in the line that says it is ready.
PYTHONUNBUFFERED=1 cloud-server --model emoji --port 0 >"$log" 2>&1 &
server=$!
for ((tick = 0; tick < ready_s * 10; tick++)); do
    port=$(sed -nE 's/^cloud-server: serving .*:([0-9]+)[^0-9:]*$/\1/p' "$log" | head -n 1)
    [[ -n $port ]] && break
    kill -0 "$server" 2>/dev/null || fail "the cloud server stopped:"
    sleep 0.1
done
[[ -n $port ]] || fail "the cloud server was not ready within $ready_s s:"

# In the background, so that a signal is acted upon at once and not only when the client is done.
device-client --prompt "a cat" --seed 3 --server "127.0.0.1:$port" --out "$out" --map "$map" &
client=$!
wait "$client"
