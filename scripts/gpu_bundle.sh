#!/usr/bin/env bash
# scripts/gpu_check.sh for a GPU machine that reaches no package registry: everything that it runs, built here (no GPU is
# needed, nvcc is) and packed. llmq and the GPU tests are linked statically but for libc and cmocka, which comes along; the
# driver and cuBLAS are opened where they run. There:
#
#   tar xf llmq-gpu-bundle.tar.xz && cd llmq-gpu-bundle && scripts/gpu_check.sh --no-build
#
# usage: scripts/gpu_bundle.sh [--out FILE.tar.xz] [--build DIR]
#   --out FILE.tar.xz   the archive (default llmq-gpu-bundle.tar.xz)
#   --build DIR         build there (default build-bundle)
set -euo pipefail
cd "$(dirname "$0")/.."
out=llmq-gpu-bundle.tar.xz build=build-bundle
most=$((64 << 20))
usage() { sed -n '/^# usage/,/^set/p' "$0" | sed '$d; s/^# //' >&2; exit 2; }
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case $1 in --out) out=$2 ;; --build) build=$2 ;; *) usage ;; esac
    shift 2
done
fail() { echo "gpu_bundle: $*" >&2; exit 1; }

cmake -B "$build" -DCMAKE_BUILD_TYPE=Release -DLLMQ_CUDA=ON -DLLMQ_EXAMPLES=OFF -DLLMQ_PORTABLE=ON
cmake --build "$build" -j "$(nproc)" --target gpu_programs

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/llmq-gpu-bundle
mkdir -p "$root/build-gpu/tests/tmp" "$root/build-gpu/lib" "$root/scripts" "$root/tests" "$root/data"
cp "$build/llmq" "$root/build-gpu/"
for program in "$build"/tests/gpu_*; do
    [ ! -f "$program" ] || [ ! -x "$program" ] || cp "$program" "$root/build-gpu/tests/"
done
cp -L "$(ldd "$build/tests/gpu_ops" | sed -n 's/.*libcmocka.* => \([^ ]*\).*/\1/p')" "$root/build-gpu/lib/"
cp scripts/gpu_check.sh scripts/gpu_torch.py "$root/scripts/"
cp -r tests/data "$root/tests/"
cp -r data/tiny "$root/data/"
cp LICENSE "$root/"
strip "$root/build-gpu/llmq" "$root"/build-gpu/tests/gpu_*

# What must be there where it runs: glibc and nothing else.
newest=
for program in "$root/build-gpu/llmq" "$root"/build-gpu/tests/gpu_*; do
    while read -r library; do
        case $library in
        libc.so.6 | libm.so.6 | libdl.so.2 | librt.so.1 | libpthread.so.0 | ld-linux*.so.* | libcmocka.so.*) ;;
        *) fail "${program##*/} needs $library, which the machine may lack" ;;
        esac
    done < <(objdump -p "$program" | awk '$1 == "NEEDED" { print $2 }')
    newest=$(printf '%s\n%s' "$newest" "$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*')" | sort -uV | tail -n 1)
done

# Unpacked elsewhere, the program reads its model and the tests find their data: they end as they end without a GPU.
(
    cd "$root"
    build-gpu/llmq score tests/data/stories260K/stories260K.bin --tokens 1,2 >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    for program in build-gpu/tests/gpu_*; do
        [ "${program##*/}" != gpu_bench ] || continue
        rc=0
        "$program" >"$work/log" 2>&1 || rc=$?
        [ $rc -eq 0 ] || [ $rc -eq 77 ] || { cat "$work/log" >&2; echo "$program: exit status $rc" >&2; exit 1; }
    done
) || fail "what was packed does not run"
rm -rf "$root"/build-gpu/tests/tmp/*

mkdir -p "$(dirname "$out")"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner -cJf "$out.part" llmq-gpu-bundle
size=$(stat -c %s "$out.part")
[ "$size" -lt $most ] || fail "$out would have $size bytes, more than $most"
mv "$out.part" "$out"
echo "$out: $((size / 1000)) kB, $("$build/llmq" --version); needs ${newest/_/ } (x86-64)"
