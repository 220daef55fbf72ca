#!/usr/bin/env python3
"""Compares llmq's gradients (train/) with PyTorch's: tiny random models of every architecture and RoPE scaling that llmq trains, each
with cross entropy and with the Kullback-Leibler divergence from a teacher.

usage: check_gradients.py DUMP_GRADIENTS [--work DIR] [--only NAME,...]

DUMP_GRADIENTS is the program of tests/train/dump_gradients.c: `ninja -C build dump_gradients` builds it. The models are those of
make_goldens.py and some with odd sizes. PyTorch computes in doubles, but for the norms and RoPE tables of transformers, which are floats.
The error of a tensor's gradient is |llmq - PyTorch| / |PyTorch|, both as vectors. Limits are for each tensor: f32 (products in floats) and
f64 1e-4; expected are about 2e-6. bf16 rounds the inputs of each product by up to 2^-8, and its errors come together over the layers: they
are only told. Exit status 1: a limit is broken. LLMQ_ISA=c|avx2|avxvnni|avx512|avx512bf16|amx (ARM: c|neon|dotprod) chooses the kernels.
Needs: torch, transformers 5, safetensors."""
import argparse
import pathlib
import struct
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import torch
import transformers

import make_goldens

LIMITS = {"f32": 1e-4, "f64": 1e-4, "bf16": None}
N_WINDOWS, N_TOKENS = 3, 53  # more rows than the net's chunk of 128, and an odd number of them
ODD = dict(vocab_size=4601, hidden_size=60, intermediate_size=100, num_attention_heads=5, num_key_value_heads=1, head_dim=12)
MODELS = {**make_goldens.MODELS,
          "llama-gqa-tied": ("LlamaConfig", dict(tie_word_embeddings=True), torch.float32, False),
          "odd": ("LlamaConfig", ODD, torch.float32, False),  # a head of several slices, the last one short
          "odd-tied": ("Qwen3Config", dict(**ODD, tie_word_embeddings=True), torch.float32, False),
          "mistral-long": ("MistralConfig", dict(sliding_window=40, num_key_value_heads=1), torch.float32, False)}


def build(name, seed, folder):
    """A random model, stored and read back as it is stored."""
    config_class, changes, dtype, older = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**{**make_goldens.SHAPE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        make_goldens.randomize(model)
    model.to(dtype).save_pretrained(folder)
    if older:
        make_goldens.older_config(folder / "config.json")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()


def batch(vocab):
    """Tokens and the next ones as labels; the last of a window has none, and some others do not count, as a prompt's."""
    g = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, vocab, (N_WINDOWS, N_TOKENS), generator=g)
    labels = torch.cat([tokens[:, 1:], torch.full((N_WINDOWS, 1), -1)], 1)
    labels[1, :7] = -1
    return tokens, labels


def reference(model, teacher, tokens, labels):
    """Loss and gradients by PyTorch; names are those of the stored tensors."""
    model.zero_grad()
    counts = labels >= 0
    log_p = torch.log_softmax(model(tokens, use_cache=False).logits[counts], -1)
    if teacher is None:
        loss = -log_p.gather(1, labels[counts][:, None]).mean()
    else:
        with torch.no_grad():
            log_t = torch.log_softmax(teacher(tokens, use_cache=False).logits[counts], -1)
        loss = (log_t.exp() * (log_t - log_p)).sum(-1).mean()
    loss.backward()
    return {"loss": np.array([loss.item()]), **{n: p.grad.numpy().ravel() for n, p in model.named_parameters()}}


def dump(program, folder, teacher, tokens, labels, work):
    """{kind: {tensor: gradient}} by llmq."""
    (work / "batch").write_bytes(struct.pack("2i", *tokens.shape) + tokens.numpy().astype("<i4").tobytes() +
                                 labels.numpy().astype("<i4").tobytes())
    subprocess.run([program, folder, teacher or "-", work / "batch", work / "out"], check=True)
    data, at, out = (work / "out").read_bytes(), 0, {}
    while at < len(data):
        length, = struct.unpack_from("<i", data, at)
        kind, name = data[at + 4:at + 4 + length].decode().split("/", 1)
        n, = struct.unpack_from("<q", data, at + 4 + length)
        at += 12 + length
        out.setdefault(kind, {})[name] = np.frombuffer(data, "<f8", n, at)
        at += 8 * n
    return out


def compare(name, loss, want, got):
    """Prints a row; True if all is within the limits."""
    row, ok = f"{name:15} {loss:3} {want['loss'][0]:10.6f}", True
    for kind, limit in LIMITS.items():
        if got[kind].keys() != want.keys():
            print(f"{name}: tensors differ: {sorted(got[kind].keys() ^ want.keys())}")
            return False
        errors = {t: np.linalg.norm(got[kind][t] - w) / np.linalg.norm(w) for t, w in want.items()}
        worst = max(errors, key=lambda t: errors[t] if errors[t] == errors[t] else np.inf)
        bad = limit and not errors[worst] <= limit
        ok = ok and not bad
        row += f" | {errors[worst]:8.1e}{'!' if bad else ' '} {np.median(list(errors.values())):8.1e} {worst.removeprefix('model.'):32}"
    print(row)
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--work", help="keep the models there")
    parser.add_argument("--only", help="models, separated by commas")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    ok = True
    print(f"{'model':15} {'':3} {'loss':>10}" + "".join(f" | {k + ' worst':9} {'median':>8} {'tensor':32}" for k in LIMITS))
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(args.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(args.only.split(",") if args.only else MODELS):
            model, teacher = build(name, 2 * i, work / name), build(name, 2 * i + 1, work / f"{name}-teacher")
            tokens, labels = batch(model.config.vocab_size)
            for loss in ("ce", "kl"):
                other = work / f"{name}-teacher" if loss == "kl" else None
                want = reference(model, teacher if other else None, tokens, labels)
                ok = compare(name, loss, want, dump(args.program, work / name, other, tokens, labels, work)) and ok
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
