#!/usr/bin/env bash
# Compresses a splat scene to a quarter of its Gaussians and makes a page that shows what it cost.
#
#   scripts/demo.sh             a procedural bonsai
#   scripts/demo.sh chair       a real one: a chair trained from photographs, which comes with the package
#   scripts/demo.sh SCENE       your own scene: .ply, .compressed.ply, .splat, .ksplat, .spz, .sog, .glb
set -euo pipefail

if (($# > 1)) || [[ "${1:-}" == -* ]]; then
    printf 'usage: scripts/demo.sh [SCENE]\n' >&2
    exit 2
fi
scene="${1:-}"
if [[ "$scene" == chair && ! -e "$scene" ]]; then
    scene="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)/compress3d/splats/samples/chair.sog"
fi
if [[ -n "$scene" ]]; then
    if [[ ! -e "$scene" ]]; then
        printf 'demo: no such scene: %s\n' "$scene" >&2
        exit 2
    fi
    scene="$(cd "$(dirname "$scene")" && pwd -P)/$(basename "$scene")"
fi

scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
"$scripts/setup.sh"
cd "$scripts/.."
out=out/demo
mkdir -p "$out"

if [[ -z "$scene" ]]; then
    scene="$out/bonsai.ply"
    printf 'demo: growing a bonsai into %s\n' "$scene"
    .venv/bin/python - "$scene" <<'PYTHON'
import sys
from pathlib import Path

from compress3d.splats.bonsai import bonsai
from compress3d.splats.formats import write_scene

write_scene(bonsai(), Path(sys.argv[1]))
PYTHON
fi

name="$(basename "$scene")"
if [[ "$name" == meta.json ]]; then
    name="$(basename "$(dirname "$scene")").sog"
fi
name="${name%.*}"
name="${name%.compressed}"
.venv/bin/secateur splat compress "$scene" -o "$out/$name.sog" --keep 25% --report "$out/report"
printf 'demo: open %s in a browser\n' "$PWD/$out/report/index.html"
