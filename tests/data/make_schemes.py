#!/usr/bin/env python3
"""Makes tests/data/schemes: folders of quantized matrices, packed by the libraries that define the layouts
(pip install torch safetensors compressed-tensors gptqmodel; 0.20.0 and 7.7.0 made what is in git).

Nothing is quantized here: codes, scales and zeros follow formulas that tests/formats/test_scheme_files.c repeats, so that
it knows every value. Each matrix is also taken apart again by its own library, which must give the same values.
"""
import json
import pathlib
import sys

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import FORMAT
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
from safetensors.torch import save_file

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "schemes")
ROWS = 32
CONFIG = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
          "vocab_size": 32, "tie_word_embeddings": True}


def codes(k, rows, cols, bits):
    n, i = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return (37 * n + 101 * i + 7 * (n * i) + k) % (1 << bits)


def scales(k, rows, groups):
    n, g = torch.meshgrid(torch.arange(rows), torch.arange(groups), indexing="ij")
    if k < 10 or k > 40:
        return (1 + (13 * n + 7 * g + k) % 31) / 64
    return (513 + 2 * ((131 * n + 71 * g + k) % 512)) / 8192  # times a zero they are no F16 numbers


def zeros(k, rows, groups, bits, sym):
    if sym:
        return torch.full((rows, groups), 1 << (bits - 1))
    n, g = torch.meshgrid(torch.arange(rows), torch.arange(groups), indexing="ij")
    return 1 + (5 * n + 3 * g + k) % ((1 << bits) - 1)  # not 0: version 1 cannot say it


def group_of(cols, group, order):
    """Groups in order, in blocks of 32 that are turned round, or scattered."""
    i = torch.arange(cols)
    if order == "blocks":
        i = (i // 32).flip(0) * 32
    if order == "scattered":
        i = (i * 37) % cols
    return (i // group).to(torch.int32)


def gptq_matrix(k, bits, cols, group, sym, v2, order="identity"):
    groups = -(-cols // group)
    q, s, z, g = codes(k, ROWS, cols, bits), scales(k, ROWS, groups), zeros(k, ROWS, groups, bits, sym), group_of(cols, group, order)
    w = s[:, g] * (q - z[:, g])
    linear = torch.nn.Linear(cols, ROWS, bias=False)
    linear.weight.data = w.float()
    packed = TorchLinear(bits=bits, group_size=group, sym=sym, desc_act=order != "identity", in_features=cols, out_features=ROWS,
                         bias=False, pack_dtype=torch.int32, register_buffers=True, format=FORMAT.GPTQ_V2)
    packed.pack_original(linear, s.float(), z.float(), g)
    packed.post_init()
    back = packed.dequantize_weight().T.float()
    assert torch.equal(back, w.half().float()), (bits, cols, group, sym, order)
    if not v2:
        class Config:
            pass
        Config.bits, Config.pack_dtype = bits, torch.int32
        convert_gptq_v2_to_v1_format_module(packed, Config)
    return {n: getattr(packed, n).contiguous() for n in ("qweight", "qzeros", "scales", "g_idx")}


def ct_matrix(k, bits, cols, group, sym):
    groups = -(-cols // group)
    half = 1 << (bits - 1)
    q = (codes(k, ROWS, cols, bits) - half).to(torch.int8)
    out = {"weight_packed": pack_to_int32(q, bits), "weight_scale": scales(k, ROWS, groups).to(torch.float16),
           "weight_shape": torch.tensor(q.shape)}
    assert torch.equal(unpack_from_int32(out["weight_packed"], bits, q.shape), q)
    if not sym:
        z = (zeros(k, ROWS, groups, bits, False) - half).to(torch.int8)
        out["weight_zero_point"] = pack_to_int32(z, bits, packed_dim=0).contiguous()
        assert torch.equal(unpack_from_int32(out["weight_zero_point"], bits, z.shape, packed_dim=0), z)
    return out


def int8_matrix(k, cols):
    return {"weight": (codes(k, ROWS, cols, 8) - 128).to(torch.int8), "weight_scale": scales(k, ROWS, 1).to(torch.bfloat16)}


def save(name, quant, matrices):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.norm.weight": torch.ones(64)}
    for matrix, members in matrices.items():
        tensors.update({f"{matrix}.{member}": t for member, t in members.items()})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": quant}, indent=1) + "\n")


def main():
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True, "lm_head": False, "pack_dtype": "int32"}
    save("gptq", {**gptq, "checkpoint_format": "gptq"}, {
        "b4": gptq_matrix(1, 4, 96, 32, True, False), "b2": gptq_matrix(2, 2, 64, 32, True, False),
        "b3": gptq_matrix(3, 3, 64, 32, True, False), "b8": gptq_matrix(4, 8, 64, 32, True, False),
        "row": gptq_matrix(5, 4, 64, 64, True, False), "ragged": gptq_matrix(6, 4, 96, 64, True, False),
        "asym": gptq_matrix(7, 4, 64, 32, False, False), "blocks": gptq_matrix(8, 4, 64, 32, True, False, "blocks"),
        "scattered": gptq_matrix(9, 4, 64, 32, True, False, "scattered")})
    save("gptq-v2", {**gptq, "sym": False, "checkpoint_format": "gptq_v2"}, {
        "b4": gptq_matrix(11, 4, 64, 32, False, True), "b2": gptq_matrix(12, 2, 64, 32, False, True),
        "b3": gptq_matrix(13, 3, 64, 32, False, True), "b8": gptq_matrix(14, 8, 64, 32, False, True)})

    def weights(bits, sym, group=32):
        return {"num_bits": bits, "type": "int", "symmetric": sym, "strategy": "group" if group else "channel", "group_size": group,
                "dynamic": False, "actorder": None, "observer": "minmax", "observer_kwargs": {}, "block_structure": None}

    def ct(fmt, args, inputs=None):
        return {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed", "ignore": ["lm_head"],
                "config_groups": {f"group_{i}": {"targets": ["Linear"], "weights": a, "input_activations": inputs, "output_activations": None}
                                  for i, a in enumerate(args)}}

    save("ct", ct("pack-quantized", [weights(b, True) for b in (4, 8, 3, 6)]), {
        "b4": ct_matrix(21, 4, 96, 32, True), "b8": ct_matrix(22, 8, 64, 32, True), "b3": ct_matrix(23, 3, 64, 32, True),
        "b6": ct_matrix(24, 6, 64, 64, True), "b5": ct_matrix(25, 5, 64, 32, True)})
    save("ct-asym", ct("pack-quantized", [weights(4, False)]), {"b4": ct_matrix(31, 4, 64, 32, False), "row": ct_matrix(32, 4, 32, 32, False)})
    save("ct-int8", ct("int-quantized", [weights(8, True, None)],
                       {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}), {"b8": int8_matrix(41, 64)})


main()
