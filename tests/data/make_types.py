#!/usr/bin/env python3
"""Makes types/blocks.bin: random blocks of every storage type and the floats that gguf-py reads in them.

Usage: make_types.py OUT   (needs numpy and gguf). Records: i32 ggml type, i32 block bytes, i32 weights in a block,
i32 blocks, the blocks, the floats; until the end of the file.
"""
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGML_QUANT_SIZES
from gguf.quants import dequantize

# Byte offsets of the f16 fields: random bytes there could be NaN, and gguf-py may not keep one as it is.
F16_FIELDS = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0], "IQ4_XS": [0],
              "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}

def main(path):
    rng = np.random.default_rng(20)
    with open(path, "wb") as f:
        for name, fields in F16_FIELDS.items():
            block_len, block_bytes = GGML_QUANT_SIZES[T[name]]
            n = 12 if block_len == 32 else 5
            blocks = rng.integers(0, 256, (n, block_bytes), dtype=np.uint8)
            for at in fields:
                d = (rng.standard_normal(n) * 10.0 ** rng.integers(-7, 3, n)).astype(np.float16)
                blocks[:, at:at + 2] = d[:, None].view(np.uint8)
            with np.errstate(over="ignore"):
                floats = dequantize(blocks, T[name]).astype(np.float32)
            assert np.isfinite(floats).all() and floats.size == n * block_len
            f.write(struct.pack("<4i", T[name], block_bytes, block_len, n) + blocks.tobytes() + floats.tobytes())
        for t in (T.F16, T.BF16):
            halves = rng.integers(0, 65536, 512, dtype=np.uint16)
            halves = halves[(halves & 0x7c00) != 0x7c00]
            floats = halves.view(np.float16).astype(np.float32) if t == T.F16 else dequantize(halves.view(np.uint8), t)
            f.write(struct.pack("<4i", t, 2, 1, halves.size) + halves.tobytes() + floats.astype(np.float32).tobytes())

if __name__ == "__main__":
    main(sys.argv[1])
