#!/usr/bin/env bash
# Lint, format check, types and tests. Exits non-zero when any of them fails.
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

status=0
"$python" -m pytest "$@" || status=$?
if ((${#failed[@]})) && ((status == 0)); then
    status=1
fi
exit "$status"
