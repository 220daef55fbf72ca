#!/usr/bin/env bash
# Every intrinsic that names.h lists has a formula in intrinsics.c or tiles.c.
set -euo pipefail
cd "$(dirname "$0")"
missing=0 n=0
while read -r name; do
    n=$((n + 1))
    grep -qwE "$name|${name#_mm512_}|${name#_tile_}" intrinsics.c tiles.c && continue
    echo "test_complete: $name is emulated and not tested (tests/emu512/intrinsics.c, tiles.c)" >&2
    missing=$((missing + 1))
done < <(sed -nE 's/^#undef (_(mm|tile)[a-z0-9_]+).*/\1/p' names.h)
[ "$n" -gt 50 ] && [ "$missing" -eq 0 ] || exit 1
echo "test_complete: $n intrinsics, all tested"
