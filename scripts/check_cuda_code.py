#!/usr/bin/env python3
"""Static gates on the machine code of the CUDA kernels, for every target that they were compiled for: no spills, registers
within budget, wide loads, tensor cores, no slow conversions. Prints a table; exits 1 if a gate fails and 77 if there is no
cuobjdump (CUDA toolkit, or the Python package triton). With --forecast also what the products could reach, from the
instructions of their inner loops and the bytes that they have in flight: arithmetic, not a measurement.

usage: scripts/check_cuda_code.py OBJECT... [--cuobjdump PATH] [--targets sm_80,sm_86,...] [--forecast]"""
import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys

# Kernel (by its name and first template arguments) -> registers at most, opcodes that must be there with the least count,
# and opcodes (as regular expressions) that must not. STL and LDL (spills, arrays in local memory) never may be.
WIDE = r"LDG\.E\.(NA\.)?128"  # no L1 allocation: a hint that some targets show
COPY = r"LDGSTS\.E\.BYPASS\.128"
LDSM, LDSM_T = r"LDSM\.16\.M88\.4", r"LDSM\.16\.MT88\.4"
SLOW = ["I2F", "F2I", "F2F", "I2FP"]
GATES = {
    r"matvec<weights_(q4_0|iq4_nl|q[45]_[01]_(64|128)), *acts_q8": (80, {WIDE: 4, r"IMMA\.16832": 8}, SLOW),
    r"matvec<weights_(q4_1|q5_0_32), *acts_q8": (80, {WIDE: 8, r"IMMA\.16832": 8}, SLOW),
    r"matvec<weights_q8_0, *acts_q8": (80, {WIDE: 8, r"IMMA\.16832": 8}, SLOW),
    r"matvec<weights_q4_k, *acts_q8": (80, {WIDE: 6, r"IMMA\.16832": 8}, SLOW),
    r"matvec<weights_iq4_xs, *acts_q8": (80, {WIDE: 4, r"IMMA\.16832": 8}, SLOW),
    r"matvec<weights_q6_k, *acts_q8": (80, {WIDE: 6, r"IMMA\.16816": 16}, SLOW),
    r"matvec<weights_(q4_0|iq4_nl|q[45]_[01]_(64|128)), *acts_f16": (80, {WIDE: 8, r"HMMA\.16816": 16}, SLOW),
    r"matvec<weights_(q4_1|q5_0_32), *acts_f16": (80, {WIDE: 12, r"HMMA\.16816": 16}, SLOW),
    r"matvec<weights_q8_0, *acts_f16": (80, {WIDE: 12, r"HMMA\.16816": 16}, SLOW),
    r"matvec<weights_q[46]_k, *acts_f16": (80, {WIDE: 14, r"HMMA\.16816": 16}, SLOW),
    r"matvec<weights_iq4_xs, *acts_f16": (80, {WIDE: 12, r"HMMA\.16816": 16}, SLOW),
    r"matvec<weights_(nf4|fp4), *acts_f16": (80, {WIDE: 8, r"HMMA\.16816": 16}, SLOW),
    r"matvec<weights_f16, *acts_f16": (80, {WIDE: 10, r"HMMA\.16816": 8}, SLOW),
    r"attend_part": (64, {COPY: 1, r"LDS\.128": 3}, ["F2F"]),
    r"attend_prompt<cache_f16, 64>": (168, {COPY: 12, LDSM: 16, LDSM_T: 16, r"HMMA\.16816": 64}, SLOW),
    r"attend_prompt<cache_f16, (96|128)>": (255, {COPY: 18, LDSM: 24, LDSM_T: 24, r"HMMA\.16816": 96}, SLOW),
    r"attend_prompt<cache_f16, 256>": (255, {COPY: 24, LDSM: 32, LDSM_T: 32, r"LDS\.128": 16, r"HMMA\.16816": 128}, SLOW),
    r"attend_prompt<cache_q8, 64>": (255, {COPY: 6, LDSM: 16, LDSM_T: 16, r"LDS\.128": 4, r"STS\.128": 8, r"HMMA\.16816": 64}, SLOW),
    r"attend_prompt<cache_q8, (96|128)>": (255, {COPY: 9, LDSM: 24, LDSM_T: 24, r"LDS\.128": 6, r"STS\.128": 12, r"HMMA\.16816": 96}, SLOW),
    r"attend_prompt<cache_q8, 256>": (255, {COPY: 12, LDSM: 32, LDSM_T: 32, r"LDS\.128": 24, r"STS\.128": 16, r"HMMA\.16816": 128}, SLOW),
    r"gemm<weights_\w+, 64>": (224, {COPY: 6, r"LDSM\.16\.M88\.4": 8, r"LDS\.128": 1, r"HMMA\.16816": 16}, SLOW),
    r"gemm<weights_\w+, 32>": (128, {COPY: 4, r"LDSM\.16\.M88\.4": 4, r"LDS\.128": 1, r"HMMA\.16816": 8}, SLOW),
    r"gemm<weights_\w+, 16>": (128, {COPY: 3, r"LDSM\.16\.M88\.4": 4, r"LDS\.128": 1, r"HMMA\.16816": 8}, SLOW),
    r"unpack_rows<weights_q[46]_k>": (64, {WIDE: 6, r"STG\.E\.64": 8}, SLOW),
    r"unpack_rows<weights_iq4_xs>": (64, {WIDE: 4, r"STG\.E\.64": 8}, SLOW),
    r"unpack_rows": (64, {WIDE: 1, r"STG\.E\.64": 4}, SLOW),
    r"fill_rows|add_splits|bring_back|gather|scatter|to_bf16": (64, {}, []),
    r"round_columns": (128, {r"LDS\.128": 2, "FFMA": 36}, []),
    r"attend_merge|fill_q8|fill_f16|embed|rms_norm|add|silu_mul|rope_store": (64, {}, []),
    r"best_parts|count_candidates|penalize": (64, {}, []),
    r"naive_q4_0|read_all": (64, {}, []),  # tests/cuda/baselines.cu
    r"list_candidates": (64, {r"LDG\.E\.128": 2}, []),
    r"draw": (64, {r"LDS\.128": 1}, []),
}


def find_tool(given):
    if given:
        return given
    if shutil.which("cuobjdump"):
        return shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if spec and spec.submodule_search_locations:
        path = os.path.join(list(spec.submodule_search_locations)[0], "backends", "nvidia", "bin", "cuobjdump")
        if os.access(path, os.X_OK):
            return path
    return None


def demangle(names):
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, out.splitlines()))


def dump(tool, obj, what):
    env = dict(os.environ, PATH=os.path.dirname(tool) + os.pathsep + os.environ["PATH"])  # it calls nvdisasm
    run = subprocess.run([tool, what, obj], capture_output=True, text=True, env=env)
    if run.returncode:
        sys.exit(f"check_cuda_code: {tool} {what} {obj}: {run.stderr.strip()}")
    return run.stdout


def resources(text):
    """{(target, mangled name): (registers, stack bytes, shared bytes)}"""
    found, target, name = {}, None, None
    for line in text.splitlines():
        if m := re.match(r"\s*arch = (\S+)", line):
            target = m[1]
        elif m := re.match(r"\s*Function (\S+):", line):
            name = m[1]
        elif m := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            found[target, name] = tuple(int(x) for x in m.groups())
    return found


def functions(text):
    """{(target, mangled name): [(address, opcode, operands), ...]}"""
    found, target, name = {}, None, None
    for line in text.splitlines():
        if m := re.match(r"\s*arch = (\S+)", line):
            target = m[1]
        elif m := re.match(r"\s*Function : (\S+)", line):
            name = m[1]
            found[target, name] = []
        elif m := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            found[target, name].append((int(m[1], 16), m[2], m[3]))
    return found


def loops_of(code, wanted=("HMMA", "IMMA")):
    """Opcodes of each stretch between a backward branch and its target that holds a wanted one (mma), the longest first."""
    loops = []
    for address, op, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands) if op.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            loop = [o for at, o, _ in code if int(target[1], 16) <= at <= address]
            if any(o.startswith(wanted) for o in loop):
                loops.append(loop)
    return sorted(loops, key=len, reverse=True)


def short(name):
    return re.sub(r"\(anonymous namespace\)::|^void |\(.*$", "", name)


def check(name, regs, stack, ops):
    for pattern, (most, needed, forbidden) in GATES.items():
        if re.match(pattern, name):
            break
    else:
        return ["no gate for this kernel"]
    count = lambda op: sum(1 for o in ops if re.match(op + r"(\.|$)", o))
    faults = []
    if regs > most:
        faults.append(f"{regs} registers, at most {most}")
    if stack or count("STL") or count("LDL"):
        faults.append(f"local memory: {stack} bytes, {count('STL')} stores, {count('LDL')} loads")
    for op, least in needed.items():
        if count(op) < least:
            faults.append(f"{count(op)} {op}, at least {least}")
    faults += [f"{count(op)} {op}" for op in forbidden if count(op)]
    return faults


# Vendor figures (ptx.md 7): target, multiprocessors, GB/s, GHz while memory-bound, threads of a multiprocessor.
DEVICES = [("A100", "sm_80", 108, 2039, 1.41, 2048), ("RTX 4090", "sm_89", 128, 1008, 2.52, 1536),
           ("H100", "sm_90a", 132, 3350, 1.755, 2048), ("H200", "sm_90a", 132, 4800, 1.755, 2048),
           ("B200", "sm_100a", 148, 7700, 1.85, 2048)]
READABLE = 0.92  # of the vendor's bandwidth, what plain read loops reach
LATENCY = 800e-9  # of a load from memory under load
THREADS = 256
NAIVE_LINES = 18 * 5 + 32 * 32  # of L1, which loads of naive_q4_0 touch: bytes 18 apart, floats 128 bytes apart, one a cycle


def weight_tiles():
    """{weight type, with its group if it has one: (columns, bytes) of a tile}"""
    layout = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cuda", "layout.h")
    found = re.findall(r"X\((\w+), (\d+), (\d+), (\d+)\)", open(layout).read())
    return {t.lower() + (f"_{group}" if int(group) else ""): (int(columns), int(size)) for t, group, columns, size in found}


def forecast(loops):
    """A table: the share of readable bandwidth that issue slots and bytes in flight allow, by kernel and device."""
    tiles = weight_tiles()
    print("\n| kernel | instructions a KB of weights | " + " | ".join(d[0] for d in DEVICES) + " |")
    print("|---|---|" + "---|" * len(DEVICES))
    for name in sorted({name for name, _ in loops if name.startswith(("matvec<", "naive"))}):
        naive = name.startswith("naive")  # tests/cuda/baselines.cu: a lane has a block of a file's Q4_0 at a time
        weight_type = "q4_0" if naive else re.search(r"weights_(\w+)", name)[1]
        columns, tile_bytes = (1024, 32 * 18) if naive else tiles[weight_type]
        mma_a_tile = columns // 32 * (1 if "acts_q8" in name and weight_type != "q6_k" else 2)
        cells, density = [], {}
        for _, target, count, gb_s, ghz, threads in DEVICES:
            if (name, target) not in loops:
                cells.append("-")
                continue
            regs, (loop, *_) = loops[name, target]
            loop_tiles = 1 if naive else sum(o.startswith(("HMMA", "IMMA")) for o in loop) / mma_a_tile
            loop_bytes = loop_tiles * tile_bytes
            density[target] = len(loop) / loop_bytes * 1024
            bytes_a_second = gb_s * 1e9 * READABLE / count
            issue = 4 * ghz * 1e9 * loop_bytes / len(loop) / bytes_a_second
            blocks = min(65536 // (-(-regs // 8) * 8 * THREADS), threads // THREADS)
            flight = blocks * THREADS // 32 * loop_bytes / (bytes_a_second * LATENCY)
            lines = ghz * 1e9 * loop_bytes / NAIVE_LINES / bytes_a_second if naive else 1
            cells.append(f"{min(issue, flight, lines, 1) * 100:.0f} % ({issue:.1f}x, {flight:.1f}x)")
        most = max(density.values()) if density else 0
        print(f"| {name} | {most:.0f} | " + " | ".join(cells) + " |")
    print("(in brackets: issue slots and bytes in flight over what full bandwidth needs)")


# Cycles of an m16n8k16 with f32 sums on a quarter of a multiprocessor: from the vendor's dense f16 rates; mma.sync on
# H100 and H200 reaches about 62 % of wgmma's rate, and for B200 the same cycles are assumed (nothing published).
MMA_CYCLES = {"A100": 8, "RTX 4090": 32, "H100": 6.5, "H200": 6.5, "B200": 6.5}
SHARED_KB = {"sm_80": 164, "sm_89": 100, "sm_90a": 228, "sm_100a": 228}


def forecast_gemm(loops):
    """What bounds products with as many tokens as a block of gemm has: memory, issue slots, tensor cores, or bytes in
    flight; and how much of the readable bandwidth and of the tensor cores' rate for mma.sync that leaves."""
    tiles = weight_tiles()
    print("\n| kernel | instructions a KB of weights | " + " | ".join(d[0] for d in DEVICES) + " |")
    print("|---|---|" + "---|" * len(DEVICES))
    key = lambda name: (re.search(r"weights_(\w+)", name)[1], int(re.search(r", (\d+)>", name)[1]))
    for name in sorted({name for name, _ in loops if name.startswith("gemm<")}, key=key):
        weight_type, tokens = key(name)
        columns, tile_bytes = tiles[weight_type]
        row_tiles = 4 if weight_type == "f16" else 8  # of a block: cuda/gemm.cu, shape
        stage_bytes = row_tiles * tile_bytes * 128 // columns
        stage_mma = row_tiles * 128 // 16 * tokens // 8  # of all 8 warps
        cells, density = [], {}
        for device, target, count, gb_s, ghz, threads in DEVICES:
            if (name, target) not in loops:
                cells.append("-")
                continue
            regs, found = loops[name, target]
            mma = lambda loop: sum(o.startswith("HMMA") for o in loop)
            instructions, missing = len(found[0]), stage_mma / 8 - mma(found[0])
            if missing > 0:  # a loop inside the loop
                instructions += round(missing / mma(found[-1])) * len(found[-1])
            density[target] = instructions * 8 / stage_bytes * 1024
            shared = stage_bytes + tokens * 256 + (4 * tokens * 4 if weight_type.startswith(("q4_1", "q4_k", "q5_0")) else 0)
            stages = 4 if tokens < 64 and 4 * shared <= 101376 else 3
            blocks = min(65536 // (-(-regs // 8) * 8 * THREADS), SHARED_KB[target] * 1024 // (stages * shared + 1024))
            cycles = {"issue": instructions * 8 / 4, "tensor": stage_mma / 4 * MMA_CYCLES[device]}
            a_cycle = gb_s * READABLE / count / ghz  # bytes of a multiprocessor
            cycles["memory"] = stage_bytes / a_cycle
            cycles["flight"] = LATENCY * ghz * 1e9 / (blocks * (stages - 1))
            bound = max(cycles, key=cycles.get)
            cells.append(f"{cycles['memory'] / cycles[bound] * 100:.0f} %, {cycles['tensor'] / cycles[bound] * 100:.0f} % ({bound})")
        print(f"| {weight_type}, {tokens} tokens | {max(density.values()):.0f} | " + " | ".join(cells) + " |")
    print("(of bandwidth, of the tensor cores; in brackets what bounds them)")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("objects", nargs="+")
    parser.add_argument("--cuobjdump")
    parser.add_argument("--targets", help="fail unless every one of these is there")
    parser.add_argument("--forecast", action="store_true")
    args = parser.parse_args()
    tool = find_tool(args.cuobjdump)
    if not tool:
        print("check_cuda_code: no cuobjdump: the machine code was not looked at")
        return 77
    seen, failed, rows, loops = set(), 0, [], {}
    for obj in args.objects:
        use, code = resources(dump(tool, obj, "-res-usage")), functions(dump(tool, obj, "-sass"))
        names = demangle(sorted({name for _, name in code}))
        for (target, mangled), listing in code.items():
            regs, stack, _ = use[target, mangled]
            name, ops, found_loops = short(names[mangled]), [op for _, op, _ in listing], loops_of(listing)
            if name.startswith("naive"):
                found_loops = loops_of(listing, "LDG")
            if name.startswith(("matvec<", "gemm<", "naive")):
                loops[name, target] = (regs, found_loops)
            seen.add(target)
            faults = check(name, regs, stack, ops)
            failed += bool(faults)
            mma = sum(o.startswith(("HMMA", "IMMA")) for o in ops)
            rows.append((name, target, regs, len(ops), mma, sum(bool(re.match(WIDE, o)) for o in ops), "; ".join(faults) or "ok"))
    for row in sorted(rows):
        print("{:50} {:8} {:3} registers {:5} instructions {:3} mma {:3} wide loads  {}".format(*row))
    if args.forecast:
        forecast(loops)
        forecast_gemm(loops)
    missing = set((args.targets or "").split(",")) - seen - {""}
    if missing:
        print("check_cuda_code: no code for", ", ".join(sorted(missing)))
    print(f"check_cuda_code: {len(rows)} kernels, {failed} fail a gate")
    return 1 if failed or missing or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
