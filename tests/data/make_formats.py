#!/usr/bin/env python3
"""Makes tests/data/formats: tiny containers written by other programs' libraries (pip install gguf safetensors numpy).

Weight i of tensor k is ((37 i + 101 k) mod 257 - 128) / 64, which F32, F16 and BF16 hold exactly; tests/formats/support.h
computes the same.
"""
import json
import pathlib
import struct
import sys

import gguf
import numpy as np
from safetensors import TensorSpec, serialize_file

OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "formats")
OUT.mkdir(parents=True, exist_ok=True)
V = gguf.GGUFValueType


def weights(k, *shape):
    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    return (((37 * i + 101 * k) % 257 - 128) / 64).astype(np.float32).reshape(shape)


def bf16(x):
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def make_gguf():
    w = gguf.GGUFWriter(OUT / "kinds.gguf", "llama")
    w.add_name("kinds")
    for name, value, kind in [
        ("u8", 250, V.UINT8), ("i8", -7, V.INT8), ("u16", 65000, V.UINT16), ("i16", -30000, V.INT16), ("u32", 4000000000, V.UINT32),
        ("i32", -2000000000, V.INT32), ("f32", 0.15625, V.FLOAT32), ("yes", True, V.BOOL), ("no", False, V.BOOL),
        ("str", "sm\u00f8rrebr\u00f8d", V.STRING), ("empty", "", V.STRING), ("u64", 2**63 + 5, V.UINT64), ("i64", -2**62, V.INT64),
        ("f64", 1 / 3, V.FLOAT64),
    ]:
        w.add_key_value(f"test.{name}", value, kind)
    for name, values, kind in [
        ("a_u8", [1, 2, 255], V.UINT8), ("a_i8", [-1, -128], V.INT8), ("a_u16", [65535], V.UINT16), ("a_i16", [-2, 3], V.INT16),
        ("a_u32", [4294967295, 1], V.UINT32), ("a_i32", [-5, 6, 7], V.INT32), ("a_f32", [0.5, -0.25], V.FLOAT32),
        ("a_bool", [True, False, True], V.BOOL), ("a_str", ["one", "", "zwei"], V.STRING), ("a_u64", [2**64 - 1], V.UINT64),
        ("a_i64", [-2**63], V.INT64), ("a_f64", [1e300], V.FLOAT64),
    ]:
        w.add_key_value(f"test.{name}", values, V.ARRAY, sub_type=kind)
    w.add_tensor("f32", weights(0, 3, 5))
    w.add_tensor("f16", weights(1, 2, 3, 4).astype(np.float16))
    w.add_tensor("bf16", bf16(weights(2, 2, 7)).view(np.uint8).reshape(2, 14), raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.add_tensor("q8_0", gguf.quants.quantize(weights(3, 2, 64), gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.add_tensor("q4_0", gguf.quants.quantize(weights(4, 1, 32), gguf.GGMLQuantizationType.Q4_0), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    w.add_tensor("vector", weights(5, 24))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make_split():
    w = gguf.GGUFWriter(OUT / "parts.gguf", "llama", split_max_tensors=2)
    w.add_name("parts")
    w.add_block_count(1)
    for k in range(5):
        w.add_tensor(f"t{k}", weights(k, 2, 8))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 12, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}


def entry(array, dtype):
    data = array.astype(np.float32) if dtype == "float32" else array.astype(np.float16) if dtype == "float16" else bf16(array)
    return dtype, data


def save(tensors, path):
    specs = {name: TensorSpec(dtype=dtype, shape=list(data.shape), data_ptr=data.ctypes.data, data_len=data.nbytes)
             for name, (dtype, data) in tensors.items()}
    serialize_file(specs, str(path), {"format": "pt"})


def make_safetensors():
    tensors = {
        "model.embed_tokens.weight": entry(weights(0, 12, 8), "bfloat16"),
        "model.norm.weight": entry(weights(1, 8), "float32"),
        "model.layers.0.mlp.down_proj.weight": entry(weights(2, 8, 16), "float16"),
        "model.layers.0.input_layernorm.weight": entry(weights(3, 8), "bfloat16"),
    }
    single, sharded = OUT / "single", OUT / "sharded"
    for folder in single, sharded:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    save(tensors, single / "model.safetensors")
    names = list(tensors)
    parts = {f"model-{n + 1:05}-of-00002.safetensors": names[2 * n:2 * n + 2] for n in range(2)}
    for file, members in parts.items():
        save({name: tensors[name] for name in members}, sharded / file)
    index = {"metadata": {"total_size": sum(data.nbytes for _, data in tensors.values())},
             "weight_map": {name: file for file, members in parts.items() for name in members}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


# llama2.c: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, SEQ = 8, 12, 2, 2, 1, 10, 6
KV = DIM * KV_HEADS // HEADS


def make_llama2c():
    """Tensor numbers k: token_embd 0, final norm 1, head 2; of layer l 10 (l + 1) + norm 0, q 1, k 2, v 3, o 4, ffn norm 5,
    gate 6, down 7, up 8."""
    def layers(member, *shape):
        return [weights(10 * (layer + 1) + member, *shape) for layer in range(LAYERS)]

    norms = layers(0, DIM) + layers(5, DIM) + [weights(1, DIM)]
    matrices = [weights(0, VOCAB, DIM), *layers(1, DIM, DIM), *layers(2, KV, DIM), *layers(3, KV, DIM), *layers(4, DIM, DIM),
                *layers(6, HIDDEN, DIM), *layers(7, DIM, HIDDEN), *layers(8, HIDDEN, DIM), weights(2, VOCAB, DIM)]
    sizes = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, SEQ)
    v1 = (struct.pack("<Ii", 0x616B3432, 1) + sizes + b"\0").ljust(256, b"\0")
    v1 += b"".join(x.tobytes() for x in norms + matrices)
    (OUT / "tiny-v1.bin").write_bytes(v1)
    group = 4
    v2 = (struct.pack("<Ii", 0x616B3432, 2) + sizes + b"\0" + struct.pack("<i", group)).ljust(256, b"\0")
    v2 += b"".join(x.tobytes() for x in norms)
    for x in matrices:
        g = x.reshape(-1, group)
        scale = np.abs(g).max(axis=1) / np.float32(127)
        q = np.round(g / np.where(scale == 0, 1, scale)[:, None]).astype(np.int8)
        v2 += q.tobytes() + scale.astype(np.float32).tobytes()
    (OUT / "tiny-v2.bin").write_bytes(v2)
    v0 = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, -VOCAB, SEQ)
    m = iter(matrices)
    take = lambda n: [next(m) for _ in range(n)]
    order = take(1) + norms[:LAYERS] + take(4 * LAYERS) + norms[LAYERS:2 * LAYERS] + take(3 * LAYERS) + norms[2 * LAYERS:]
    v0 += b"".join(x.tobytes() for x in order) + np.full(SEQ * DIM // HEADS, 7, np.float32).tobytes() + next(m).tobytes()
    (OUT / "tiny-v0.bin").write_bytes(v0)


make_gguf()
make_split()
make_safetensors()
make_llama2c()
