#!/usr/bin/env bash
# Makes the virtual environment .venv that demo.sh and test.sh run in. When it is up to date this takes no time.
#
#   scripts/setup.sh            PYTHON=python3.12 scripts/setup.sh   to choose the interpreter of a new environment
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
python="$venv/bin/python"
stamp="$venv/secateur-setup.stamp"
log="$venv/secateur-setup.log"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

recent_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# The checkout's place counts because an editable install and the commands in .venv/bin hold it as an absolute path.
fingerprint() {
    "$python" - "$root" <<'PYTHON'
import hashlib, pathlib, sys

digest = hashlib.sha256(f"{sys.version} {sys.argv[1]}".encode())
for name in ("pyproject.toml", "constraints.txt", "scripts/setup.sh"):
    digest.update(pathlib.Path(sys.argv[1], name).read_bytes())
print(digest.hexdigest())
PYTHON
}

up_to_date() { [[ -f "$stamp" && -x "$python" && "$(cat "$stamp")" == "$(fingerprint 2>/dev/null)" ]]; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && recent_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found (tried ${PYTHON:+$PYTHON, }python3, python3.13, python3.12, python3.11)." \
        "Install one, or name it: PYTHON=/path/to/python3 scripts/setup.sh"
}

# Runs a step, says how long it took, and shows the end of its log when it fails.
step() {
    local title="$1" began=$SECONDS
    shift
    if ! "$@" >>"$log" 2>&1; then
        tail -n 25 "$log" >&2
        fail "$title failed; the lines above are the end of $log"
    fi
    say "$title ($((SECONDS - began)) s)"
}

has_pip() { [[ -x "$python" ]] && "$python" -m pip --version >/dev/null 2>&1; }

# Debian ships Python without ensurepip: python3-venv brings it where we may install, the system's pip stands in elsewhere.
create_environment() {
    local base="$1" version
    version="$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    mkdir -p "$venv"
    "$base" -m venv --clear "$venv" >/dev/null 2>&1 && has_pip && return
    if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
        say "this Python cannot make environments with pip; installing python$version-venv"
        { apt-get update && apt-get install -y "python$version-venv"; } >/dev/null 2>&1 || true
        "$base" -m venv --clear "$venv" >/dev/null 2>&1 && has_pip && return
    fi
    "$base" -m venv --clear --without-pip "$venv" >/dev/null 2>&1 &&
        "$base" -m pip --python "$python" install --quiet pip >/dev/null 2>&1 && has_pip && return
    "$base" -m virtualenv --clear "$venv" >/dev/null 2>&1 && has_pip && return
    fail "$base can make no virtual environment with pip: ensurepip is missing." \
        "Install python$version-venv (Debian, Ubuntu) or virtualenv, then run this again."
}

# open3d draws in the same library that it computes with, so it loads only where these are.
provide_libraries_of_open3d() {
    "$python" -c 'import open3d' >/dev/null 2>&1 && return
    if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
        say "open3d does not load; installing libgl1, libusb-1.0-0 and libgomp1"
        { apt-get update && apt-get install -y libgl1 libusb-1.0-0 libgomp1; } >>"$log" 2>&1 || true
        "$python" -c 'import open3d' >/dev/null 2>&1 && return
    fi
    say "open3d does not load (on Debian, Ubuntu: apt-get install libgl1 libusb-1.0-0 libgomp1):" \
        "its tests are skipped, meshes are read and written as PLY only, and nothing else needs it"
}

# These are only wanted by some tests and pictures, so their absence is told and nothing is forced.
report_optional_programs() {
    command -v node >/dev/null && command -v npm >/dev/null ||
        say "node with npm is missing: the tests that compare files with splat-transform are skipped, all else works"
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
        say "chromium is missing: screenshots of report pages are skipped, the pages themselves are written as ever"
}

if up_to_date; then
    say "up to date"
    exit 0
fi

if ! { [[ -x "$python" ]] && recent_enough "$python" && has_pip; }; then
    base="$(find_python)"
    began=$SECONDS
    create_environment "$base"
    say "environment with $("$python" --version) ($((SECONDS - began)) s)"
fi
rm -f "$stamp"
: >"$log"

cd "$root"
# torch goes first and alone: where the configured index offers a CPU build it is taken, and nothing that depends on torch
# can pull another one. The default Linux wheels on PyPI bring CUDA libraries of several GB.
step "torch" "$python" -m pip install --constraint constraints.txt torch
step "secateur and its tools" "$python" -m pip install --constraint constraints.txt --editable '.[dev]'
provide_libraries_of_open3d
report_optional_programs
# Last, and by renaming: an interrupted setup leaves no stamp, so the next one starts over.
fingerprint >"$stamp.new"
mv "$stamp.new" "$stamp"
say "ready in $SECONDS s"
