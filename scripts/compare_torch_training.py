#!/usr/bin/env python3
"""llmq train beside PyTorch: the same shape, first weights, windows, schedule and optimizer, so many steps each, in turns.

usage: PYTHON scripts/compare_torch_training.py --llmq build/llmq TEXT [options]      (PYTHON needs torch, nothing else)

Prints the losses of both after the last step (mean of the training windows, and the held-out text), and tokens per
second of each round with the median and the range of their ratio. PyTorch computes in float32 (eager; with --compile
torch.compile too, where a C++ compiler is found), or with --autocast in bfloat16 autocast; llmq multiplies in bf16 where the CPU
can, with f32 sums, weights and moments.
"""
import argparse
import json
import math
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

MASK = (1 << 64) - 1


class SplitMix:
    """train/random.h"""

    def __init__(self, seed, purpose):
        self.at = seed
        self.at = self.next() ^ purpose

    def next(self):
        self.at = (self.at + 0x9E3779B97F4A7C15) & MASK
        z = self.at
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


class Corpus:
    """train/corpus.c: what is held out, and the windows of a step."""

    def __init__(self, tokens, ctx, seed):
        self.ctx, self.seed, self.epoch = ctx, seed, -1
        held = max(min(len(tokens) // 20, 32768), ctx + 1)
        self.train, self.held = tokens[:-held], tokens[-held:]
        self.windows = (len(self.train) - 1) // ctx
        if self.windows > 1:
            self.windows -= 1

    def window(self, i):
        if i // self.windows != self.epoch:
            self.epoch = i // self.windows
            r = SplitMix(self.seed, self.epoch)
            room = min(len(self.train) - 1 - self.windows * self.ctx, self.ctx - 1)
            self.shift = r.next() % (room + 1)
            self.order = list(range(self.windows))
            for k in range(self.windows - 1, 0, -1):
                j = r.next() % (k + 1)
                self.order[k], self.order[j] = self.order[j], self.order[k]
        at = self.shift + self.order[i % self.windows] * self.ctx
        return self.train[at : at + self.ctx + 1]

    def batch(self, step, size):
        rows = torch.tensor([self.window(step * size + i) for i in range(size)])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def read_safetensors(path):
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        header, data = json.loads(f.read(n)), f.read()
    out = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        assert t["dtype"] == "F32", t["dtype"]
        a, b = t["data_offsets"]
        out[name] = torch.frombuffer(bytearray(data[a:b]), dtype=torch.float32).reshape(t["shape"])
    return out


class Llama(torch.nn.Module):
    def __init__(self, folder):
        super().__init__()
        with open(os.path.join(folder, "config.json")) as f:
            c = json.load(f)
        self.layers, self.heads, self.kv = c["num_hidden_layers"], c["num_attention_heads"], c["num_key_value_heads"]
        self.dim, self.eps, self.theta = c["head_dim"], c["rms_norm_eps"], c["rope_theta"]
        for name, x in read_safetensors(os.path.join(folder, "model.safetensors")).items():
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(x))

    def w(self, layer, name):
        return getattr(self, f"model_layers_{layer}_{name}_weight")

    def norm(self, x, gain):
        return F.rms_norm(x, (x.shape[-1],), gain, self.eps)

    def forward(self, tokens, labels):
        b, t = tokens.shape
        inv = self.theta ** (-torch.arange(0, self.dim, 2) / self.dim)
        angle = torch.outer(torch.arange(t), inv)
        cos, sin = angle.cos(), angle.sin()

        def rope(x):
            x1, x2 = x.chunk(2, -1)
            return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)

        embed = self.model_embed_tokens_weight
        x = F.embedding(tokens, embed)
        for i in range(self.layers):
            a = self.norm(x, self.w(i, "input_layernorm"))
            q = rope(F.linear(a, self.w(i, "self_attn_q_proj")).view(b, t, self.heads, self.dim).transpose(1, 2))
            k = rope(F.linear(a, self.w(i, "self_attn_k_proj")).view(b, t, self.kv, self.dim).transpose(1, 2))
            v = F.linear(a, self.w(i, "self_attn_v_proj")).view(b, t, self.kv, self.dim).transpose(1, 2)
            if self.kv != self.heads:
                k, v = (y.repeat_interleave(self.heads // self.kv, 1) for y in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(y.transpose(1, 2).reshape(b, t, -1), self.w(i, "self_attn_o_proj"))
            a = self.norm(x, self.w(i, "post_attention_layernorm"))
            up = F.silu(F.linear(a, self.w(i, "mlp_gate_proj"))) * F.linear(a, self.w(i, "mlp_up_proj"))
            x = x + F.linear(up, self.w(i, "mlp_down_proj"))
        logits = F.linear(self.norm(x, self.model_norm_weight), embed)
        return F.cross_entropy(logits.float().view(b * t, -1), labels.view(-1))


def rate(o, step):
    """train/adam.h's schedule with train/train.c's warm-up."""
    warmup = math.ceil(0.05 * o.steps)
    if step < warmup:
        return o.lr * (step + 1) / warmup
    return o.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (o.steps - warmup)))


def run_torch(o, folder, corpus, compiled):
    model = Llama(folder)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=o.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
    forward = torch.compile(model) if compiled else model
    auto = torch.autocast("cpu", torch.bfloat16, enabled=o.autocast)
    losses, seconds = [], 0.0
    for step in range(o.steps):
        tokens, labels = corpus.batch(step, o.batch)
        begin = time.perf_counter()
        for g in adam.param_groups:
            g["lr"] = rate(o, step)
        with auto:
            loss = forward(tokens, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step > 0 or o.steps == 1:  # the first compiles and touches memory
            seconds += time.perf_counter() - begin
    speed = max(o.steps - 1, 1) * o.batch * o.ctx / seconds
    held, n = 0.0, (len(corpus.held) - 1) // o.ctx
    with torch.no_grad():
        for i in range(0, n, o.batch):
            rows = torch.tensor([corpus.held[k * o.ctx : (k + 1) * o.ctx + 1] for k in range(i, min(i + o.batch, n))])
            held += model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).item() * len(rows)
    return {"speed": speed, "loss": statistics.fmean(losses[-max(1, o.steps // 20) :]), "held": held / n}


def llmq(o, *args, **more):
    r = subprocess.run([o.llmq, *args], capture_output=True, **more)
    if r.returncode:
        sys.exit(f"llmq {' '.join(args)}: {r.stderr.decode()}")
    return json.loads(r.stdout)


def run_llmq(o, folder, work):
    d = llmq(o, "train", o.text, "--from", folder, "-o", os.path.join(work, "out"), "--force", "--no-resume", "--json", "-q",
             "--steps", str(o.steps), "--lr", repr(o.lr), "--ctx", str(o.ctx), "--batch", str(o.batch), "--type", "f32",
             "--threads", str(o.threads))
    last = d["curve"][-1]
    return {"speed": d["tokens_per_second"], "loss": last["loss"], "held": last["held_out"]}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("text")
    p.add_argument("--llmq", default="build/llmq")
    for name, value in (("layers", 8), ("dim", 384), ("heads", 6), ("kv-heads", 6), ("ff", 1024), ("vocab", 2048),
                        ("ctx", 256), ("batch", 16), ("steps", 10), ("rounds", 3), ("threads", 2)):
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--autocast", action="store_true")
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    with tempfile.TemporaryDirectory() as work:
        folder = os.path.join(work, "init")
        shape = [f"--{n}={getattr(o, n.replace('-', '_'))}" for n in ("layers", "dim", "heads", "kv-heads", "ff", "vocab", "ctx")]
        first = llmq(o, "train", o.text, "-o", folder, "--steps", "0", "--type", "f32", "--json", "-q", *shape)
        with open(o.text, "rb") as f:
            corpus = Corpus(llmq(o, "tokenize", folder, "--special", stdin=f), o.ctx, 0)
        print(f"{first['params']:,} parameters, {o.batch} windows of {o.ctx} tokens, {o.steps} steps a round, {o.threads} threads, "
              f"torch {torch.__version__}{' autocast to bfloat16' if o.autocast else ''}, held out before: {first['curve'][0]['held_out']:.4f}")
        ways = [("eager", False)] + ([("compile", True)] if o.compile else [])
        rows = {name: [] for name, _ in ways}
        for k in range(o.rounds):
            for name, compiled in ways:
                try:
                    theirs = run_torch(o, folder, corpus, compiled)
                except Exception as e:  # no compiler, most often
                    print(f"torch {name}: {type(e).__name__}: {str(e).splitlines()[0][:120]}")
                    ways = [w for w in ways if w[0] != name]
                    continue
                ours = run_llmq(o, folder, work)
                rows[name].append(ours["speed"] / theirs["speed"])
                print(f"round {k + 1}, torch {name}: llmq {ours['speed']:7.0f} tokens/s, torch {theirs['speed']:7.0f}: {rows[name][-1]:.2f} x; "
                      f"training loss {ours['loss']:.4f}, {theirs['loss']:.4f}; held out {ours['held']:.4f}, {theirs['held']:.4f}", flush=True)
        for name, ratios in rows.items():
            if ratios:
                print(f"torch {name}: llmq is {statistics.median(ratios):.2f} x as fast (median of {len(ratios)}, {min(ratios):.2f} to {max(ratios):.2f})")


main()
