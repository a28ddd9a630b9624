#!/usr/bin/env bash
# The tests, tier by tier, in two processes each: fast, then real.
#   tools/test.sh [--nightly] [further arguments of pytest]
# A tier that fails does not keep the next one from running; the exit status is that of the first one that failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BIN=${BIN:-.venv/bin/python}
NOTHING_SELECTED=5

status=$NOTHING_SELECTED
tier() { # tier FOLDERS-AND-OPTIONS...
    local code=0
    "$BIN" -m pytest "$@" || code=$?
    if [ "$code" != "$NOTHING_SELECTED" ] && { [ "$status" = 0 ] || [ "$status" = "$NOTHING_SELECTED" ]; }; then
        status=$code
    fi
}

tier tests/fast tests/contracts -n 2 --dist worksteal "$@"
# Two real runs at a time take 14 GB.
available=$(awk '/MemAvailable/ { print int($2 / 1000000) }' /proc/meminfo)
[ "$available" -ge 16 ] && at_a_time=2 || at_a_time=0
tier tests/real -n "$at_a_time" "$@"
exit "$status"
