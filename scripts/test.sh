#!/usr/bin/env bash
# Lint, format check, types and tests, these on all cores. Exits non-zero when any of them fails.
#
#   scripts/test.sh [--all] [pytest arguments]        --all also runs the tests marked slow
set -euo pipefail

scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
"$scripts/setup.sh"
cd "$scripts/.."
python=.venv/bin/python
packages=(secateur compress3d diffusion vit)
failed=()

check() {
    local title="$1"
    shift
    "$@" || failed+=("$title")
}

check "ruff check" "$python" -m ruff check --quiet .
check "ruff format" "$python" -m ruff format --check --quiet .
check "mypy" "$python" -m mypy --no-error-summary "${packages[@]}"
if ((${#failed[@]})); then
    printf 'test: failed: %s (see above); the tests run all the same\n' "$(printf '%s, ' "${failed[@]}" | sed 's/, $//')"
else
    printf 'test: ruff and mypy found nothing\n'
fi

# A process a core, each of one thread: two of them with two threads each would wait for one another.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
status=0
"$python" -m pytest --numprocesses auto --maxprocesses 4 "$@" || status=$?
if ((${#failed[@]})) && ((status == 0)); then
    status=1
fi
exit "$status"
