#!/usr/bin/env python3
"""Makes schemes/bnb.bin and schemes/awq.bin: matrices as bitsandbytes and AutoAWQ store them, and what they read back.

Usage: make_schemes_bnb_awq.py OUT_DIR   (needs torch, bitsandbytes and autoawq; the latter without its dependencies:
pip install --no-deps autoawq). Both files are records "u32 length, name, u32 bytes, data" until their end. The weights
are made by weights() here and by the same formula in tests/formats/test_bnb_awq.c. A record "CASE.values" holds the
first and the last 64 weights (float32) that the library reads in its own file.
"""
import importlib
import struct
import sys
import types

import numpy as np
import torch


def weights(rows, cols, seed):
    """Heavy-tailed, exact in float32 for anyone with IEEE doubles."""
    out = np.empty(rows * cols, np.float64)
    state = seed
    for i in range(out.size):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        u = (state >> 40) / 16777216.0 - 0.5
        out[i] = 0.5 * u * u * u + 0.01 * u
    return out.astype(np.float32).reshape(rows, cols)


def record(f, name, data):
    f.write(struct.pack("<I", len(name)) + name.encode() + struct.pack("<I", len(data)) + data)


def ends(x):
    x = x.reshape(-1)
    return np.concatenate([x[:64], x[-64:]]).astype(np.float32).tobytes()


def bnb(path):
    from bitsandbytes import functional as F

    cases = [("nf4", 6, 192, "nf4", 64, False), ("nf4-nested", 26, 640, "nf4", 64, True),
             ("fp4", 4, 192, "fp4", 64, False), ("fp4-nested", 4, 256, "fp4", 64, True),
             ("nf4-across", 7, 100, "nf4", 64, False), ("nf4-across-nested", 9, 100, "nf4", 64, True),
             ("nf4-128", 3, 256, "nf4", 128, False), ("nf4-4096", 1, 4096, "nf4", 4096, False)]
    with open(path, "wb") as f:
        record(f, "map", F.create_dynamic_map().numpy().tobytes())
        for name, rows, cols, kind, block, nested in cases:
            w = torch.from_numpy(weights(rows, cols, 11))
            packed, state = F.quantize_4bit(w, blocksize=block, compress_statistics=nested, quant_type=kind)
            values = F.dequantize_4bit(packed, state)
            record(f, name + ".weight", packed.numpy().tobytes())
            for key, tensor in state.as_dict(packed=True).items():
                if key != "nested_quant_map":  # always "map"
                    record(f, name + ".weight." + key, tensor.numpy().tobytes())
            record(f, name + ".values", ends(values.numpy()))


def awq_modules():
    """AutoAWQ's packer and unpacker without the rest of it, which wants old versions of its dependencies."""
    import importlib.util
    root = importlib.util.find_spec("awq").submodule_search_locations[0]
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [root + name[3:].replace(".", "/")]
    utils = types.ModuleType("awq.utils.utils")
    utils.get_best_device = lambda: "cpu"
    sys.modules["awq.utils.utils"] = utils
    return importlib.import_module("awq.modules.linear.gemm"), importlib.import_module("awq.utils.packing_utils")


def awq(path):
    gemm, packing = awq_modules()
    with open(path, "wb") as f:
        for name, rows, cols, group in (("asym", 64, 96, 32), ("whole", 32, 64, 64)):
            w = torch.from_numpy(weights(rows, cols, 5))
            g = w.reshape(rows, -1, group)
            low, high = g.amin(2), g.amax(2)
            scales = ((high - low).clamp(min=1e-5) / 15).half().float()
            zeros = (-torch.round(low / scales)).clamp(0, 15)
            linear = torch.nn.Linear(cols, rows, bias=False)
            q = torch.clamp(torch.round(g / scales[..., None]) + zeros[..., None], 0, 15)
            linear.weight.data = ((q - zeros[..., None]) * scales[..., None]).reshape(rows, cols)
            out = gemm.WQLinear_GEMM.from_linear(linear, 4, group, scales=scales.t().contiguous(),
                                                 zeros=zeros.t().contiguous())
            record(f, name + ".qweight", out.qweight.numpy().tobytes())
            record(f, name + ".qzeros", out.qzeros.numpy().tobytes())
            record(f, name + ".scales", out.scales.numpy().tobytes())
            back = packing.dequantize_gemm(out.qweight, out.qzeros, out.scales.float(), 4, group)
            assert torch.equal(back.t(), linear.weight.data)
            record(f, name + ".values", ends(back.t().contiguous().numpy()))


if __name__ == "__main__":
    bnb(sys.argv[1] + "/bnb.bin")
    awq(sys.argv[1] + "/awq.bin")
