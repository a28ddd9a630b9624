#!/usr/bin/env bash
# Runs the contract tests (tests/contracts) against a verl of your choice, without touching the one in .venv:
#   tools/contracts.sh 0.9.0                  a release, from the package index
#   tools/contracts.sh path/to/verl-X.whl     a wheel, or a folder that holds verl's source
# Further arguments go to pytest. What a failure means: docs/upgrading-verl.md.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
BIN=${BIN:-.venv/bin/python}
CACHE=${CACHE:-.venv/contracts}

die() {
    printf 'contracts: %s\n' "$*" >&2
    exit 1
}

[ $# -ge 1 ] || die "which verl? tools/contracts.sh 0.9.0, or a wheel, or a folder of source"
command -v "$BIN" >/dev/null || die "there is no $BIN: run make venv first"
ASKED=$1
shift

fetch() { # fetch REQUIREMENT FOLDER
    rm -rf "$2" "$2.part"
    "$BIN" -m pip --disable-pip-version-check --no-input install --quiet --no-deps --no-compile --target "$2.part" "$1" ||
        die "verl $ASKED could not be downloaded; pip's reason is above. Without a network: tools/contracts.sh path/to/its.whl"
    # verl's wheel has packages `tests` and `scripts` beside verl, which would stand in the way of ours.
    rm -rf "$2.part/tests" "$2.part/scripts" "$2.part/bin"
    mv "$2.part" "$2"
}

if [ -e "$ASKED" ]; then
    FOLDER=$(realpath -m "$CACHE")/given
    fetch "$ASKED" "$FOLDER"
    VERSION=$("$BIN" -c "import sys; from importlib.metadata import distributions as d
print(next(x.version for x in d(path=sys.argv[1:]) if x.name == 'verl'))" "$FOLDER")
else
    VERSION=$ASKED
    FOLDER=$(realpath -m "$CACHE")/$VERSION
    [ -d "$FOLDER/verl" ] || fetch "verl==$VERSION" "$FOLDER"
fi

# conftest.py ends the run when another verl is imported than this one.
export CONTRACTS_VERL_VERSION=$VERSION CONTRACTS_VERL_FOLDER=$FOLDER
PYTHONPATH=$FOLDER${PYTHONPATH:+:$PYTHONPATH} exec "$BIN" -m pytest tests/contracts --ignore tests/contracts/broken "$@"
