#!/usr/bin/env python3
"""Mistakes seeded into the kernels, one at a time: each has to be found by the kernels' own tests under the emulator, and
those that the emulator reports have to come with their line. By hand, it compiles for minutes:

usage: tests/cuda/mutate.py BUILD_FOLDER [WORD]      (only mutations whose file or name holds a match of WORD)"""
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FAULT = r" at \w+\.cuh?:\d+: "         # a report of the emulator, with its line
VALUES = r"expected|memory_equal|Failure!"  # wrong results: no line of the kernel to name

# File, name, text, what becomes of it, how it has to be found.
MUTATIONS = [
    ("gemm.cu", "no wait for copies", "cp_async_wait<S::stages - 2>();", "", FAULT),
    ("gemm.cu", "a wait for one group too few", "cp_async_wait<S::stages - 2>();", "cp_async_wait<S::stages - 1>();", FAULT),
    ("gemm.cu", "no barrier after the wait", "__syncthreads(); /* this stage", "/* this stage", FAULT),
    ("gemm.cu", "the barrier before the wait", "cp_async_wait<S::stages - 2>();\n        __syncthreads();",
     "__syncthreads();\n        cp_async_wait<S::stages - 2>();", FAULT),
    ("gemm.cu", "no commit", "        cp_async_commit();\n", "", FAULT),
    ("gemm.cu", "a stage is filled that is read", "copy_next((place ? place : S::total) - S::bytes,", "copy_next(place,", FAULT),
    ("gemm.cu", "the next stage is read", "sptr<const uint8_t> weights = stages + place,",
     "sptr<const uint8_t> weights = stages + (place + S::bytes) % S::total,", FAULT),
    ("gemm.cu", "one stage too many is copied", "left >= S::stages);", "left >= S::stages - 1);", FAULT),
    ("gemm.cu", "columns past the last tile", "there = (at >= W::bytes) < from.tiles_left;", "there = from.tiles_left > 0;", FAULT),
    ("gemm.cu", "rows past the last tile", "(there ? static_cast<int64_t>(row_tile) * w.n_tiles : 0)",
     "static_cast<int64_t>(row_tile) * w.n_tiles", FAULT),
    ("gemm.cu", "no barrier before the halves are added", "        __syncthreads();\n        add_halves", "        add_halves", FAULT),
    ("gemm.cu", "no barrier between the halves", "    __syncthreads();\n    if (k_warp == 0) {", "    if (k_warp == 0) {", FAULT),
    ("gemm.cu", "a row too many is stored", "if (row >= rows || token", "if (row > rows || token", FAULT + "|" + VALUES),
    ("gemm.cu", "tokens that are not there are stored", "|| token >= x.n_tok) continue;", ") continue;", FAULT),
    ("gemm.cu", "all splits write the same", "static_cast<int64_t>(blockIdx.z) * x.n_tok * ldy", "int64_t{0}", FAULT),
    ("gemm.cu", "chunks in other places than they were copied to", "acts_place(lane % 8, part * 8 + j * 4 + lane / 8)",
     "acts_place(lane % 8, part * 8 + j * 4 + (lane / 8 ^ 1))", VALUES),
    ("gemm.cu", "minimums of the next group", "(mins_now) {\n                const float2 sum = sums[((part * 2 + j) *",
     "(mins_now) {\n                const float2 sum = sums[((part * 2 + (j ^ 1)) *", VALUES),
    ("gemm.cu", "a group's minimum for half of it", "j < 2 * PARTS; j++", "j < PARTS; j++", VALUES),
    ("gemm.cu", "a group's scale is its neighbour's", "W::load_part(weights + r * W::stage_bytes, part, lane);\n        W::scales",
     "W::load_part(weights + r * W::stage_bytes, part ^ 1, lane);\n        W::scales", VALUES),
    ("gemm.cu", "two groups of 64 are scaled as one", "W::group == STAGE_COLUMNS ? MINE : 1",
     "scaled_later<W> ? MINE : 1", VALUES),
    ("matvec.cu", "a group's minimum for its last 32 columns", "i == j ? more :", "true ? more :", VALUES),
    ("gemm.cu", "a split too few is added", "for (int s = 0; s < splits; s++)", "for (int s = 1; s < splits; s++)", VALUES),
    ("prompt_attention.cu", "no wait for keys and values", "        cp_async_wait<0>();\n", "", FAULT),
    ("prompt_attention.cu", "no barrier after the wait", "cp_async_wait<0>();\n        __syncthreads();", "cp_async_wait<0>();", FAULT),
    ("prompt_attention.cu", "the barrier before the wait", "cp_async_wait<0>();\n        __syncthreads();",
     "__syncthreads();\n        cp_async_wait<0>();", FAULT),
    ("prompt_attention.cu", "no commit of keys and values", "    cp_async_commit();\n", "", FAULT),
    ("prompt_attention.cu", "no barrier after decoding", "scales, tile);\n            __syncthreads();", "scales, tile);", FAULT),
    ("prompt_attention.cu", "keys are fetched over those that are read", "        values.arrive();\n        if (first + S::keys < end)",
     "        if (first + S::keys < end)", FAULT),
    ("prompt_attention.cu", "values are fetched over those that are read", "        keys.arrive();\n        values.fetch(a, page, a.v_at, first, end - first);",
     "        values.fetch(a, page, a.v_at, first, end - first);\n        keys.arrive();", FAULT),
    ("prompt_attention.cu", "keys past the last", "const bool there = key < n_keys;", "const bool there = true;", FAULT),
    ("prompt_attention.cu", "padding of keys is not cleared", "    keys.clear_padding(a.head_dim);\n", "", FAULT),
    ("prompt_attention.cu", "queries that are not there are stored", "        if (query >= a.n_tok * a.group) continue;\n", "", FAULT),
    ("prompt_attention.cu", "all tiles are in the first page", "uint64_t page = a.pages[page_of(first)];", "uint64_t page = a.pages[0];", FAULT + "|" + VALUES),
    ("prompt_attention.cu", "the next tile is in the same page", "page = a.pages[page_of(first + S::keys)];", "page = a.pages[page_of(first)];", FAULT + "|" + VALUES),
    ("prompt_attention.cu", "rows of a page by position", "row = first % PAGE_KEYS;", "row = first;", FAULT + "|" + VALUES),
    ("prompt_attention.cu", "a window is a key too long", "max(newest + 1 - a.window, 0)", "max(newest - a.window, 0)", VALUES),
    ("prompt_attention.cu", "no mask at a window's edge", "first < r.all_from || ", "", VALUES),
    ("prompt_attention.cu", "no mask at the newest keys", " || first + S::keys > r.all_to", "", VALUES),
    ("prompt_attention.cu", "a tile that is seen is skipped", "first < r.any_to && ", "first + S::keys < r.any_to && ", VALUES),
    ("prompt_attention.cu", "earlier sums do not shrink", "out[i / 4][i % 4] *= shrink[i / 2 % 2];", ";", VALUES),
    ("prompt_attention.cu", "scales of the next row", "scales[key * (head_dim / 32) + column / 32]", "scales[key * (head_dim / 32)]", VALUES),
    ("quant.cu", "no barrier after the factors", "    __syncthreads();\n    const int64_t row", "    const int64_t row", FAULT),
    ("quant.cu", "rows that are not there", "    if (row >= rows) return;\n", "", FAULT),
    ("quant.cu", "factors of columns that are not there", "k < n && j < k ? at", "j < k ? at", FAULT),
    ("quant.cu", "a panel skips the column before it", "for (int j = 0; j < k0; j++) {", "for (int j = 0; j < k0 - 1; j++) {", VALUES),
    ("sample.cu", "no barrier between parts", "    __syncthreads();\n    if (thread != 0) return;\n    for (int w", "    if (thread != 0) return;\n    for (int w", FAULT),
    ("sample.cu", "the list's length is not cleared", "i < BINS + 1; i += step", "i < BINS; i += step", FAULT),
    ("sample.cu", "no barrier before counting", "counts[i] = 0;\n    __syncthreads();", "counts[i] = 0;", FAULT),
    ("sample.cu", "no barrier after counting", "sums[thread] = sum;\n    __syncthreads();", "sums[thread] = sum;", FAULT),
    ("sample.cu", "no barrier between lanes' sums", "    __syncwarp();\n", "", FAULT),
    ("sample.cu", "a lane's sum is left out", "for (int i = 1; i < 32; i++) sum", "for (int i = 1; i < 31; i++) sum", VALUES),
    ("sample.cu", "-0 lies far below", "__float_as_uint(fabsf(below))", "__float_as_uint(below)", VALUES),
    ("sample.cu", "no barrier between warps' counts", "warps[thread / 32] = upto;\n    __syncthreads();", "warps[thread / 32] = upto;", FAULT),
    ("sample.cu", "no barrier after the last bin", "    __syncthreads();\n    *candidates", "    *candidates", FAULT),
    ("sample.cu", "a list that is too long", "at > LIST ? last - 1 : last", "last", FAULT),
    ("sample.cu", "the higher index of equals", "<< 32 | ~static_cast<uint32_t>(index)", "<< 32 | static_cast<uint32_t>(index)", VALUES),
    ("sample.cu", "sort: no barrier before the partner", "keys[i] = key;\n                __syncthreads();", "keys[i] = key;", FAULT),
    ("sample.cu", "sort: no barrier after the partner", "other = keys[i ^ step];\n                __syncthreads();", "other = keys[i ^ step];", FAULT),
    ("sample.cu", "no barrier before adding up", "terms[threadIdx.x] = term;\n    __syncthreads();", "terms[threadIdx.x] = term;", FAULT),
    ("sample.cu", "no barrier after adding up", "four.w);\n    }\n    __syncthreads();", "four.w);\n    }", FAULT),
    ("sample.cu", "no barrier before the largest", "most[threadIdx.x / 32] = x;\n    __syncthreads();", "most[threadIdx.x / 32] = x;", FAULT),
    ("sample.cu", "top_p leaves one more", "? -(i + 1) : -n", "? -(i + 2) : -n", VALUES),
    ("sample.cu", "min_p leaves none", "? i + 1 : 1);", "? i + 1 : 0);", VALUES),
    ("sample.cu", "what is behind the list is forgotten", "fewest == most && most < n ? most : 0", "most", VALUES),
    ("sample.cu", "penalties only divide", "x > 0 ? x / by : x * by", "x / by", VALUES),
]


def compiler(build):
    """How the build compiles kernels for the emulator and links their tests."""
    commands = subprocess.run(["ninja", "-C", build, "-t", "commands", "cuda_test_gemm"], capture_output=True, text=True,
                              check=True).stdout.splitlines()
    of = next(c for c in commands if c.endswith("cuda/gemm.cu"))
    return of.split(" -MD ")[0].replace("-O2", "-O1")


def link(build, test, mutant, program):
    command = subprocess.run(["ninja", "-C", build, "-t", "commands", test], capture_output=True, text=True,
                             check=True).stdout.splitlines()[-1]
    command = re.sub(r"^: && | && :$", "", command)
    command = re.sub(r"-o \S+", f"{mutant} -o {program}", command, count=1)
    subprocess.run(command, shell=True, check=True, cwd=build)


def main():
    build, word = os.path.abspath(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    compile_command, missed = compiler(build), 0
    for name, what, text, becomes, expected in MUTATIONS:
        if not re.search(word, f"{name}: {what}"):
            continue
        source = open(os.path.join(ROOT, "cuda", name)).read()
        if source.count(text) != 1:
            sys.exit(f"mutate: {name}: {text!r} is there {source.count(text)} times")
        with tempfile.TemporaryDirectory() as folder:
            mutant, test = os.path.join(folder, name), "cuda_test_" + name[:-3]
            open(mutant, "w").write(source.replace(text, becomes))
            subprocess.run(f"{compile_command} -w -c {mutant} -o {mutant}.o", shell=True, check=True)
            link(build, test, mutant + ".o", os.path.join(folder, "test"))
            try:
                run = subprocess.run([os.path.join(folder, "test")], capture_output=True, text=True, timeout=300)
            except subprocess.TimeoutExpired:
                run = subprocess.CompletedProcess([], 1, "", "timeout")
            said = run.stdout + run.stderr
            found = run.returncode != 0 and re.search(expected, said)
            missed += not found
            first = next((l for l in said.splitlines() if "ERROR" in l or "expected" in l), "").replace("[  ERROR   ] --- ", "")
            print(f"{'found ' if found else 'MISSED'} {name}: {what}: {first[:240]}", flush=True)
    print(f"mutate: {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
