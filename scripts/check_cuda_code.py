#!/usr/bin/env python3
"""Static gates on the machine code of the CUDA kernels, for every target that they were compiled for: no spills, registers
within budget, wide loads, tensor cores, no slow conversions. Prints a table; exits 1 if a gate fails and 77 if there is no
cuobjdump (CUDA toolkit, or the Python package triton). With --forecast also what the decode kernels could reach, from the
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
SLOW = ["I2F", "F2I", "F2F", "I2FP"]
GATES = {
    r"matvec<weights_(q4_0|iq4_nl), *acts_q8": (80, {WIDE: 4, r"IMMA\.16832": 8}, SLOW),
    r"matvec<weights_q4_1, *acts_q8": (80, {WIDE: 8, r"IMMA\.16832": 8}, SLOW),
    r"matvec<weights_q8_0, *acts_q8": (80, {WIDE: 8, r"IMMA\.16832": 8}, SLOW),
    r"matvec<weights_q4_k, *acts_q8": (80, {WIDE: 6, r"IMMA\.16832": 8}, SLOW),
    r"matvec<weights_q6_k, *acts_q8": (80, {WIDE: 6, r"IMMA\.16816": 16}, SLOW),
    r"matvec<weights_(q4_0|iq4_nl), *acts_f16": (80, {WIDE: 8, r"HMMA\.16816": 16}, SLOW),
    r"matvec<weights_q4_1, *acts_f16": (80, {WIDE: 12, r"HMMA\.16816": 16}, SLOW),
    r"matvec<weights_q8_0, *acts_f16": (80, {WIDE: 12, r"HMMA\.16816": 16}, SLOW),
    r"matvec<weights_q[46]_k, *acts_f16": (80, {WIDE: 14, r"HMMA\.16816": 16}, SLOW),
    r"matvec<weights_f16, *acts_f16": (80, {WIDE: 10, r"HMMA\.16816": 8}, SLOW),
    r"attend_part": (64, {r"LDGSTS\.E\.BYPASS\.128": 1, r"LDS\.128": 3}, ["F2F"]),
    r"attend_merge|argmax|fill_q8|fill_f16|embed|rms_norm|add|silu_mul|rope_store": (64, {}, []),
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


def inner_loop(code):
    """The longest stretch between a backward branch and its target that holds an mma."""
    best = []
    for address, op, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands) if op.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            loop = [o for at, o, _ in code if int(target[1], 16) <= at <= address]
            if any(o.startswith(("HMMA", "IMMA")) for o in loop) and len(loop) > len(best):
                best = loop
    return best


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


def forecast(loops):
    """A table: the share of readable bandwidth that issue slots and bytes in flight allow, by kernel and device."""
    layout = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cuda", "layout.h")
    tiles = {m[0].lower(): (int(m[1]), int(m[2])) for m in re.findall(r"X\((\w+), (\d+), (\d+)\)", open(layout).read())}
    print("\n| kernel | instructions a KB of weights | " + " | ".join(d[0] for d in DEVICES) + " |")
    print("|---|---|" + "---|" * len(DEVICES))
    for name in sorted({name for name, _ in loops}):
        weight_type = re.search(r"weights_(\w+)", name)[1]
        columns, tile_bytes = tiles[weight_type]
        mma_a_tile = columns // 32 * (1 if "acts_q8" in name and weight_type != "q6_k" else 2)
        cells, density = [], {}
        for _, target, count, gb_s, ghz, threads in DEVICES:
            if (name, target) not in loops:
                cells.append("-")
                continue
            regs, loop = loops[name, target]
            loop_tiles = sum(o.startswith(("HMMA", "IMMA")) for o in loop) / mma_a_tile
            loop_bytes = loop_tiles * tile_bytes
            density[target] = len(loop) / loop_bytes * 1024
            bytes_a_second = gb_s * 1e9 * READABLE / count
            issue = 4 * ghz * 1e9 * loop_bytes / len(loop) / bytes_a_second
            blocks = min(65536 // (-(-regs // 8) * 8 * THREADS), threads // THREADS)
            flight = blocks * THREADS // 32 * loop_bytes / (bytes_a_second * LATENCY)
            cells.append(f"{min(issue, flight, 1) * 100:.0f} % ({issue:.1f}x, {flight:.1f}x)")
        most = max(density.values()) if density else 0
        print(f"| {name} | {most:.0f} | " + " | ".join(cells) + " |")
    print("(in brackets: issue slots and bytes in flight over what full bandwidth needs)")


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
            name, ops, loop = short(names[mangled]), [op for _, op, _ in listing], inner_loop(listing)
            if name.startswith("matvec<"):
                loops[name, target] = (regs, loop)
            seen.add(target)
            faults = check(name, regs, stack, ops)
            failed += bool(faults)
            mma = sum(o.startswith(("HMMA", "IMMA")) for o in ops)
            rows.append((name, target, regs, len(ops), mma, sum(bool(re.match(WIDE, o)) for o in ops), "; ".join(faults) or "ok"))
    for row in sorted(rows):
        print("{:50} {:8} {:3} registers {:5} instructions {:3} mma {:3} wide loads  {}".format(*row))
    if args.forecast:
        forecast(loops)
    missing = set((args.targets or "").split(",")) - seen - {""}
    if missing:
        print("check_cuda_code: no code for", ", ".join(sorted(missing)))
    print(f"check_cuda_code: {len(rows)} kernels, {failed} fail a gate")
    return 1 if failed or missing or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
