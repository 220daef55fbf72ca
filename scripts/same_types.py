#!/usr/bin/env python3
"""The storage type of every matrix of a GGUF file as a policy file of `llmq quantize`, or two files' types side by side.

usage: same_types.py FILE.gguf > FILE.policy        then: llmq quantize MODEL --policy FILE.policy -o OUT.gguf
       same_types.py FILE.gguf OTHER.gguf           status 1 unless every tensor has the same type, shape and bytes in both

llama.cpp's names such as Q4_K_M stand for mixtures of types. Methods are comparable where every tensor has the same
bits in both files. Only Python's standard library is needed."""
import math
import pathlib
import struct
import sys

# number: (name, weights of a block, bytes of a block)
TYPES = {0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22), 7: ("q5_1", 32, 24),
         8: ("q8_0", 32, 34), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110), 12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176),
         14: ("q6_k", 256, 210), 20: ("iq4_nl", 32, 18), 23: ("iq4_xs", 256, 136), 30: ("bf16", 1, 2)}
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def tensors(path):
    """{name: (type, shape, bytes)} of a GGUF file, in its order."""
    with open(path, "rb") as f:
        def read(form):
            form = "<" + form
            return struct.unpack(form, f.read(struct.calcsize(form)))

        def text():
            return f.read(read("Q")[0])

        def skip_value(kind):
            if kind == STRING:
                text()
            elif kind == ARRAY:
                item, n = read("IQ")
                if item in SCALARS:
                    f.seek(n * struct.calcsize(SCALARS[item]), 1)
                else:
                    for _ in range(n):
                        skip_value(item)
            else:
                f.seek(struct.calcsize(SCALARS[kind]), 1)

        magic, version, n_tensors, n_keys = read("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            sys.exit(f"{path}: no GGUF file of version 2 or 3")
        for _ in range(n_keys):
            text()
            skip_value(read("I")[0])
        out = {}
        for _ in range(n_tensors):
            name = text().decode()
            shape = read("Q" * read("I")[0])
            number = read("IQ")[0]
            kind, block, size = TYPES.get(number, (f"type {number}", 1, 0))
            out[name] = kind, shape, math.prod(shape) // block * size
        return out


def policy(path):
    """The text of a policy file."""
    return "".join(f"{name} {kind}\n" for name, (kind, shape, _) in tensors(path).items() if len(shape) > 1)


def differences(a, b):
    """One line for every tensor that is not alike in both files."""
    a, b = tensors(a), tensors(b)
    return [f"{name}: {a.get(name, 'absent')} and {b.get(name, 'absent')}" for name in sorted(set(a) | set(b))
            if a.get(name) != b.get(name)]


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    if len(sys.argv) == 2:
        print(policy(sys.argv[1]), end="")
        return
    lines = differences(sys.argv[1], sys.argv[2])
    both = [(pathlib.Path(p).stat().st_size, sum(size for _, _, size in tensors(p).values())) for p in sys.argv[1:]]
    for path, (size, data) in zip(sys.argv[1:], both):
        print(f"{path}: {size} bytes, {data} of them tensors")
    print("\n".join(lines) if lines else f"{len(tensors(sys.argv[1]))} tensors, each of the same type and size in both")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
