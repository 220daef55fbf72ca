#!/usr/bin/env python3
"""What rotations and stronger codebooks would gain at 2 and 3 bits: the study behind docs/two-bits.md.

usage: study_codebooks.py gauss                                     distortion of each codebook on Gaussian numbers
       study_codebooks.py proxy MODEL --text T --judge J [...]      tr(E H E') / tr(W H W') of some layers, by site
       study_codebooks.py model MODEL --text T --grid G -o OUT      the whole model through one grid, layer after layer
       study_codebooks.py model ... --steps N [--qat]               then scales (and codes) trained by KL, as --tune and --qat do
       study_codebooks.py decode                                    instructions per weight of the decoders (llvm-mca)

MODEL is a Hugging Face folder of a Llama or Qwen3 decoder. OUT is such a folder in F16 whose weights are the dequantized
ones (rotated back), so that `llmq perplexity OUT --base MODEL` judges it. T is read from its beginning, J too.

A grid is written BITS-CODE-GROUP[-SCALE], for example 2-int-32, 2-nl-64-8, 3-tcq8-row:
  int    signed integers times a scale (what llmq stores now in groups)   asym  integers times a scale, plus an offset
  nl     the 2^BITS levels that suit Gaussian numbers best (Lloyd-Max)    q2k   as Q2_K: 16 weights share a scale and a minimum of 4 bits
  e8p    QuIP#'s lattice code: 65,536 points of E8 + 1/4, 8 rows at once  vq2, vq4  k-means, 2 or 4 rows at once, 2^(BITS*d) points
  tcqL   trellis: a value is looked up by the last L bits of a stream of BITS a weight that ends where it began
         (32 weights a ring; tcqL.T: T weights), tables trained on Gaussian numbers
GROUP is 32, 64, ... columns of a row that share a scale, or "row". SCALE is 16 (F16, the default), or 8 or 4: integers of
that size times one F16 a row. Codes of several weights run down a column, over neighbouring rows, so that error feedback
from column to column stays exact: a whole column of them shares one importance.

Rotations (--rotate): none; fold: the residual stream and V/O, which cost nothing at run time (except that a tied head is no
longer tied); full: every matrix from both sides by random orthogonal matrices, an upper bound that needs transforms at run time.

Solver of all grids alike: LDLQ feedback, columns in the order of the diagonal, then sweeps over the codes and a refit of the
scales, as in docs/quantization.md. Needs numpy and numba, --steps also torch, "decode" clang and llvm-mca; LLMQ=build/llmq for tokens."""
import argparse
import ctypes
import functools
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import numba
import numpy as np

F32, LLMQ = np.float32, os.environ.get("LLMQ", "build/llmq")


# ---------------------------------------------------------------- the model

def read_safetensors(path):
    raw = np.memmap(path, np.uint8, "r")
    head = struct.unpack("<Q", raw[:8].tobytes())[0]
    out = {}
    for name, t in json.loads(raw[8:8 + head].tobytes()).items():
        if name == "__metadata__":
            continue
        lo, hi = (8 + head + o for o in t["data_offsets"])
        part = raw[lo:hi]
        if t["dtype"] == "BF16":
            value = (part.view(np.uint16).astype(np.uint32) << 16).view(F32)
        else:
            value = part.view({"F16": np.float16, "F32": F32}[t["dtype"]]).astype(F32)
        out[name] = value.reshape(t["shape"])
    return out


def write_safetensors(path, tensors):
    head, offset = {}, 0
    for name, v in tensors.items():
        head[name] = {"dtype": "F16", "shape": list(v.shape), "data_offsets": [offset, offset + 2 * v.size]}
        offset += 2 * v.size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for v in tensors.values():
            f.write(v.astype(np.float16).tobytes())


class Model:
    """Weights in float32 and the forward pass of one layer, with a visitor at every site of weights."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.cfg = json.loads((self.folder / "config.json").read_text())
        self.t = read_safetensors(self.folder / "model.safetensors")
        c = self.cfg
        self.heads, self.kv = c["num_attention_heads"], c.get("num_key_value_heads") or c["num_attention_heads"]
        self.hd = c.get("head_dim") or c["hidden_size"] // self.heads
        self.layers, self.eps = c["num_hidden_layers"], c["rms_norm_eps"]
        theta = c.get("rope_theta") or c.get("rope_parameters", {}).get("rope_theta", 10000.0)
        self.freq = 1.0 / theta ** (np.arange(0, self.hd, 2) / self.hd)

    def tokens(self, text, ctx, count):
        """count // ctx windows of ctx tokens from the beginning of the text."""
        data = pathlib.Path(text).read_bytes()[:count * 12]  # no tokenizer makes fewer than one token of 12 bytes of prose
        done = subprocess.run([LLMQ, "tokenize", self.folder], input=data, capture_output=True, check=True)
        ids = json.loads(done.stdout)
        n = min(count, len(ids)) // ctx
        return np.array(ids[:n * ctx]).reshape(n, ctx)

    def name(self, i, role):
        return f"model.layers.{i}.{'mlp' if role in ('gate', 'up', 'down') else 'self_attn'}.{role}_proj.weight"

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + F32(self.eps)) * self.t[name]

    def rope(self, x):
        angle = np.arange(x.shape[1])[:, None] * self.freq[None, :]
        cos, sin = np.cos(angle).astype(F32)[:, None], np.sin(angle).astype(F32)[:, None]
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def layer(self, i, x, visit):
        """x (windows, tokens, width) after layer i. visit(i, roles, inputs) returns the weights to go on with."""
        p, (n, T, _) = f"model.layers.{i}.", x.shape
        flat = lambda v: v.reshape(n * T, -1)
        h = flat(self.norm(x, p + "input_layernorm.weight"))
        q, k, v = (h @ w.T for w in visit(i, ("q", "k", "v"), h))
        q, k, v = q.reshape(n, T, self.heads, -1), k.reshape(n, T, self.kv, -1), v.reshape(n, T, self.kv, -1)
        if p + "self_attn.q_norm.weight" in self.t:
            q, k = self.norm(q, p + "self_attn.q_norm.weight"), self.norm(k, p + "self_attn.k_norm.weight")
        q, k = self.rope(q), self.rope(k)
        mask = np.triu(np.full((T, T), -np.inf, F32), 1)
        o = np.empty_like(q)
        for w in range(n):
            for g in range(self.heads):
                s = q[w, :, g] @ k[w, :, g * self.kv // self.heads].T / F32(np.sqrt(self.hd)) + mask
                s = np.exp(s - s.max(-1, keepdims=True))
                o[w, :, g] = (s / s.sum(-1, keepdims=True)) @ v[w, :, g * self.kv // self.heads]
        o = flat(o)
        x = x + (o @ visit(i, ("o",), o)[0].T).reshape(x.shape)
        h = flat(self.norm(x, p + "post_attention_layernorm.weight"))
        g, u = (h @ w.T for w in visit(i, ("gate", "up"), h))
        h = g / (1 + np.exp(-g)) * u
        return x + (h @ visit(i, ("down",), h)[0].T).reshape(x.shape)


def gram(x, mean=0.0):
    """X'X / tokens; mean counts the inputs' mean so many times more, as llmq's solver does."""
    mu = x.mean(0)
    return x.T @ x / F32(len(x)) + F32(mean) * np.outer(mu, mu)


# ---------------------------------------------------------------- rotations

@functools.lru_cache(None)
def orthogonal(n, seed):
    """A random orthogonal matrix."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (q * np.sign(np.diag(r))).astype(F32)


def rotation(kind, m, i, role):
    """(Qout, Qin, gain): the grid sees Qout W diag(gain) Qin'. None stands for the identity."""
    rows, cols = m.t[m.name(i, role)].shape
    if kind == "none":
        return None, None, None
    if kind == "full":
        return orthogonal(rows, 1), orthogonal(cols, 2), None
    stream, head = orthogonal(m.cfg["hidden_size"], 7), orthogonal(m.hd, 8)
    ln = "input_layernorm" if role in "qkv" else "post_attention_layernorm"
    gain = m.t[f"model.layers.{i}.{ln}.weight"] if role in ("q", "k", "v", "gate", "up") else None
    qin = stream if gain is not None else np.kron(np.eye(m.heads, dtype=F32), head) if role == "o" else None
    qout = stream if role in ("o", "down") else np.kron(np.eye(m.kv, dtype=F32), head) if role == "v" else None
    return qout, qin, gain


def rotated(w, h, rot):
    qout, qin, gain = rot
    if gain is not None:
        w, h = w * gain, h / np.outer(gain, gain)
    if qin is not None:
        w, h = w @ qin.T, qin @ h @ qin.T
    return (w if qout is None else qout @ w), h


def unrotated(w, rot):
    qout, qin, gain = rot
    w = w if qout is None else qout.T @ w
    w = w if qin is None else w @ qin
    return w if gain is None else w / gain


# ---------------------------------------------------------------- codebooks: encode(u, w) returns the values nearest to u (weights w)

class Scalar:
    unit = 1

    def __init__(self, levels):
        self.levels = np.asarray(levels, F32)
        self.cuts = (self.levels[1:] + self.levels[:-1]) / 2

    def encode(self, u, w):
        return self.levels[np.searchsorted(self.cuts, u)]


@functools.lru_cache(None)
def lloyd_max(bits):
    x = np.sort(np.random.default_rng(1).standard_normal(400_000))
    levels = np.quantile(x, (np.arange(2 ** bits) + 0.5) / 2 ** bits)
    for _ in range(300):
        which = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
        levels = np.bincount(which, x) / np.bincount(which)
    return Scalar((levels - levels[::-1]) / 2)


@numba.njit(parallel=True, fastmath=True, cache=True)
def nearest(u, w, points, out):
    for i in numba.prange(len(u)):
        best, at = np.float32(np.inf), 0
        for p in range(len(points)):
            d = np.float32(0)
            for j in range(points.shape[1]):
                d += w[i, j] * (u[i, j] - points[p, j]) ** 2
            if d < best:
                best, at = d, p
        out[i] = at


class Vector:
    """Points of d dimensions, found by looking at all of them."""

    def __init__(self, points):
        self.points, self.unit = np.ascontiguousarray(points, F32), points.shape[1]

    def index(self, u, w):
        out = np.empty(len(u), np.int64)
        nearest(u, w, self.points, out)
        return out

    def encode(self, u, w):
        u, w = u.reshape(-1, self.unit), w.reshape(-1, self.unit)
        return self.points[self.index(u, w)].reshape(-1)


@functools.lru_cache(None)
def kmeans(bits, d):
    """Points for Gaussian numbers. One table for all matrices: per matrix they would cost 0.05 to 0.4 bits a weight here."""
    rng = np.random.default_rng(2)
    n = 2 ** (bits * d)
    x = rng.standard_normal((max(40_000, 40 * n), d)).astype(F32)
    v, ones = Vector(x[:n].copy()), np.ones_like(x)
    for _ in range(25):
        at = v.index(x, ones)
        count = np.bincount(at, minlength=n)
        sums = np.stack([np.bincount(at, x[:, j], n) for j in range(d)], 1)
        v.points[count > 0] = (sums / np.maximum(count, 1)[:, None])[count > 0]
    return v


@numba.njit(parallel=True, fastmath=True, cache=True)
def e8p_nearest(u, w, table, odd, out):
    for i in numba.prange(len(u)):
        best = np.float32(np.inf)
        for shift in (np.float32(0.25), np.float32(-0.25)):
            a, minus = np.empty(8, np.float32), 0
            for j in range(8):
                z = u[i, j] - shift
                minus ^= z < 0
                a[j] = abs(z)
            for p in range(256):
                d, flip, flip_at = np.float32(0), np.float32(np.inf), 0
                for j in range(8):
                    d += w[i, j] * (a[j] - table[p, j]) ** 2
                    f = 4 * w[i, j] * a[j] * table[p, j]  # what the other sign of one coordinate costs
                    if f < flip:
                        flip, flip_at = f, j
                wrong = minus != odd[p]
                if wrong:
                    d += flip
                if d < best:
                    best = d
                    for j in range(8):
                        s = (u[i, j] - shift < 0) != (wrong and j == flip_at)
                        out[i, j] = shift + (-table[p, j] if s else table[p, j])


class E8P:
    """Halves of odd integers with an even sum, shifted by 1/4 both ways: 256 patterns of magnitudes, 7 signs, the shift."""
    unit, stretch = 8, 1.0

    def __init__(self):
        def patterns(n, left):
            if n == 0:
                return [()]
            return [(v,) + rest for v, cost in ((0.5, 0), (1.5, 2), (2.5, 6)) if cost <= left for rest in patterns(n - 1, left - cost)]
        rows = sorted(patterns(8, 10), key=lambda r: (sum(v * v for v in r), r))[:256]  # all 227 up to norm 10, and 29 of norm 12
        self.table = np.array(rows, F32)
        self.odd = self.table.sum(1).astype(np.int64) % 2 == 1
        x = np.random.default_rng(3).standard_normal(80_000).astype(F32)
        tries = [(np.mean((self.raw(x * g, np.ones_like(x)) / g - x) ** 2), g) for g in np.arange(0.9, 1.35, 0.025).astype(F32)]
        self.stretch = min(tries)[1]

    def raw(self, u, w):
        out = np.empty((len(u) // 8, 8), F32)
        e8p_nearest(u.reshape(-1, 8), w.reshape(-1, 8), self.table, self.odd, out)
        return out.reshape(-1)

    def encode(self, u, w):
        return self.raw(u * self.stretch, w) / self.stretch


@functools.lru_cache(None)
def viterbi(bits, L):
    """rings(u, w, table, out): the states out of the cheapest walk for each row of u, which is a ring. bits and L are constants of
    the compiled code."""
    S, C, J = 1 << L, 1 << bits, 1 << (L - bits)

    @numba.njit(fastmath=True)
    def walk(u, w, table, cost, least, first, last, states):
        """first < 0: begins anywhere; last < 0: ends anywhere. states[t]: the bits that value t is looked up by. cost (T + 1, S)."""
        for s in range(S):
            cost[0, s] = 0 if first < 0 or s == first else np.float32(1e30)
        for t in range(len(u)):
            before, after, ut, wt = cost[t], cost[t + 1], u[t], w[t]
            for j in range(J):
                least[j] = min(before[j], before[J + j])
            for p in range(2, C):
                for j in range(J):
                    least[j] = min(least[j], before[p * J + j])
            for j in range(J):
                for c in range(C):
                    e = ut - table[j * C + c]
                    after[j * C + c] = least[j] + wt * e * e
        s = last if last >= 0 else np.argmin(cost[len(u)])
        for t in range(len(u) - 1, -1, -1):
            states[t] = s
            j, best = s >> bits, 0
            for p in range(1, C):
                if cost[t, p * J + j] < cost[t, best * J + j]:
                    best = p
            s = best * J + j

    @numba.njit(parallel=True, fastmath=True)
    def rings(u, w, table, out):
        """A free walk over more than one turn finds the state at the seam, a second one keeps it at both ends."""
        n, T = u.shape
        pad = min(T, 32)
        for i in numba.prange(n):
            longer, weights = np.empty(T + 2 * pad, np.float32), np.empty(T + 2 * pad, np.float32)
            for t in range(T + 2 * pad):
                longer[t], weights[t] = u[i, (t - pad) % T], w[i, (t - pad) % T]
            cost, least = np.empty((T + 2 * pad + 1, S), np.float32), np.empty(J, np.float32)
            states = np.empty(T + 2 * pad, np.int64)
            walk(longer, weights, table, cost, least, -1, -1, states)
            seam = states[pad - 1]
            walk(u[i], w[i], table, cost, least, seam, seam, states)
            for t in range(T):
                out[i, t] = states[t]
    return rings


class Trellis:
    def __init__(self, bits, L, T):
        self.rings, self.unit = viterbi(bits, L), T
        # Start: the 2^BITS states that follow one another's state, and those that lead to the same one, get values far apart.
        C, S = 1 << bits, 1 << L
        state = np.arange(S)
        low, high, middle = state % C, state >> (L - bits), (state >> bits) % max(1, S >> (2 * bits))
        rank = np.argsort(np.argsort((low + high) % C * (S >> bits) + low * (S >> (2 * bits)) + middle, kind="stable"))
        self.table = np.sort(np.random.default_rng(4).standard_normal(64 * S)).reshape(S, 64).mean(1)[rank].astype(F32)
        x = np.random.default_rng(5).standard_normal((60_000 // T if L < 12 else 600, T)).astype(F32)
        for _ in range(40 if L < 12 else 5):
            at = self.states(x, np.ones_like(x)).reshape(-1)
            count, sums = np.bincount(at, minlength=S), np.bincount(at, x.reshape(-1), S)
            self.table = ((sums + self.table) / (count + 1)).astype(F32)
        step = np.abs(self.table).max() / 127  # a kernel looks up bytes
        self.table = (np.round(self.table / step) * step).astype(F32)

    def states(self, u, w):
        out = np.empty(u.shape, np.int64)
        self.rings(u, w, self.table, out)
        return out

    def encode(self, u, w):
        shape = (-1, self.unit)
        return self.table[self.states(u.reshape(shape), w.reshape(shape))].reshape(-1)


@functools.lru_cache(None)
def codebook(bits, name):
    if name == "int":
        return Scalar(np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    if name in ("asym", "q2k"):
        return Scalar(np.arange(2 ** bits))
    if name == "nl":
        return lloyd_max(bits)
    if name == "e8p" and bits == 2:
        return E8P()
    if name.startswith("vq"):
        return kmeans(bits, int(name[2:]))
    if name.startswith("tcq"):
        L, _, T = name[3:].partition(".")
        return Trellis(bits, int(L), int(T or 32))
    sys.exit(f"no codebook {name} of {bits} bits")


# ---------------------------------------------------------------- grids: a codebook and its scales

def f16(x):
    return x.astype(np.float16).astype(F32)


class Grid:
    def __init__(self, text):
        parts = text.split("-")
        self.text, self.bits, self.code = text, int(parts[0]), parts[1]
        self.group = 0 if parts[2] == "row" else int(parts[2])
        self.scale_bits = int(parts[3]) if len(parts) > 3 else 16
        self.book = codebook(self.bits, self.code)
        self.scalar = isinstance(self.book, Scalar)
        self.offset = self.code in ("asym", "q2k")

    def bpw(self, rows, cols):
        """Bits of a weight, everything that a file would hold counted, tables that are the same for all matrices not."""
        group = self.group or cols
        if self.code == "q2k":
            return self.bits + 8 / group + 32 / 192
        return self.bits + self.scale_bits * (1 + self.offset) / group + (16 / cols if self.scale_bits < 16 else 0)

    def fit(self, w, importance):
        """Scales and offsets, both of w's shape, for codes that are chosen later."""
        n, m = w.shape
        g = self.group or m
        x, imp = w.reshape(n, m // g, g), np.broadcast_to(importance.reshape(1, m // g, g), (n, m // g, g))
        t = np.zeros((n, m // g), F32)
        if not self.scalar:
            s = np.sqrt(np.mean(x * x, -1))
        elif self.offset:
            s, t = self.search_offset(x, imp)
        else:
            s = self.search(x, imp)
        s, t = self.stored(s, t)
        wide = lambda v: np.repeat(v, g, 1)
        return wide(s), wide(t)

    def search(self, x, imp):
        levels = self.book.levels
        top = np.abs(x).max(-1) / np.abs(levels).max()
        best, keep = np.full(top.shape, -1, F32), top
        signs = (1, -1) if abs(levels[0]) != levels[-1] else (1,)
        for f in np.linspace(0.35, 1.25, 16):
            for sign in signs:
                c = self.book.encode(x / np.where(top == 0, 1, F32(f * sign) * top)[..., None], None)
                xc, cc = np.sum(imp * c * x, -1), np.maximum(np.sum(imp * c * c, -1), 1e-20)
                gain = xc * xc / cc  # what the best scale for these codes takes off the error
                keep, best = np.where(gain > best, xc / cc, keep), np.maximum(gain, best)
        return keep

    def search_offset(self, x, imp):
        lo, hi = x.min(-1), x.max(-1)
        best, ks, kt = np.full(lo.shape, np.inf, F32), hi - lo, lo
        for f in np.linspace(0.4, 1.1, 15):
            mid, s = (lo + hi) / 2, np.maximum(F32(f) * (hi - lo), 1e-12) / (2 ** self.bits - 1)
            t = mid - s * (2 ** self.bits - 1) / 2
            for _ in range(1):
                c = self.book.encode((x - t[..., None]) / s[..., None], None)
                w0, w1, w2 = imp.sum(-1), (imp * c).sum(-1), (imp * c * c).sum(-1)
                y0, y1 = (imp * x).sum(-1), (imp * c * x).sum(-1)
                det = w0 * w2 - w1 * w1
                ok = det > 1e-6 * w0 * w2
                s, t = np.where(ok, (w0 * y1 - w1 * y0) / np.where(ok, det, 1), s), np.where(ok, (w2 * y0 - w1 * y1) / np.where(ok, det, 1), t)
                s = np.maximum(s, 1e-12)
            e = np.sum(imp * (self.book.encode((x - t[..., None]) / s[..., None], None) * s[..., None] + t[..., None] - x) ** 2, -1)
            better = e < best
            ks, kt, best = np.where(better, s, ks), np.where(better, t, kt), np.minimum(e, best)
        return ks, kt

    def stored(self, s, t):
        """As a file holds them."""
        if self.code == "q2k":  # 4-bit scales and minimums, super-blocks of 192 (256 does not divide the rows here)
            sup = lambda v: np.repeat(np.maximum(v.reshape(len(v), -1, 12).max(-1), 1e-12) / 15, 12, 1)
            low = np.maximum(-t, 0)
            ds, dt = f16(sup(s)), f16(sup(low))
            return np.maximum(np.round(s / ds), 1) * ds, -np.round(low / np.maximum(dt, 1e-12)) * dt
        if self.scale_bits == 16:
            return f16(s), f16(t)
        top = 2 ** self.scale_bits - 1
        d = f16(np.maximum(np.abs(s).max(1, keepdims=True), 1e-12) / top)
        return np.maximum(np.round(np.abs(s) / d), 1) * d * np.sign(s), t


# ---------------------------------------------------------------- the solver; all matrices here are (columns, rows): a column is contiguous

def ldlq(Wt, St, Tt, H, encode, width=32):
    """Codes' values (columns, rows), columns in the order they have, by error feedback."""
    m, n = Wt.shape
    R = np.linalg.cholesky(H[::-1, ::-1].astype(np.float64))[::-1, ::-1]  # H = R R', R upper
    A = (R / np.diag(R)).astype(F32)
    E, C = np.zeros((m, n), F32), np.zeros((m, n), F32)
    for b in range(0, m, width):
        e = min(b + width, m)
        base = Wt[b:e] - A[:b, b:e].T @ E[:b]
        for k in range(b, e):
            target = base[k - b] - A[b:k, k] @ E[b:k]
            C[k] = encode((target - Tt[k]) / St[k], St[k] * St[k])
            E[k] = C[k] * St[k] + Tt[k] - Wt[k]
    return C


def sweep(Wt, St, Tt, H, C, encode, unit, width=32):
    """Every column once more, given all others; a ring or a vector of codes changes only for the better."""
    m, n = Wt.shape
    G = H @ (C * St + Tt - Wt)
    for b in range(0, m, width):
        e = min(b + width, m)
        D = np.zeros((e - b, n), F32)
        for k in range(b, e):
            value = C[k] * St[k] + Tt[k]
            target = value - (G[k] + H[b:k, k] @ D[:k - b]) / H[k, k]
            new = encode((target - Tt[k]) / St[k], St[k] * St[k])
            moved = new * St[k] + Tt[k]
            gain = ((value - target) ** 2 - (moved - target) ** 2).reshape(-1, unit).sum(1)
            new = np.where(np.repeat(gain > 0, unit), new, C[k])
            D[k - b] = (new - C[k]) * St[k]
            C[k] = new
        G += H[:, b:e] @ D
    return C


def refit(Wt, St, Tt, H, C, groups, offset):
    """Scales (and offsets) given the codes, group after group (Gauss-Seidel)."""
    E = C * St + Tt - Wt
    G = H @ E
    for cols in groups:
        for x, numbers in ((C[cols], St), (np.ones_like(C[cols]), Tt))[:1 + offset]:
            hx = H[:, cols] @ x
            step = -(x * G[cols]).sum(0) / np.maximum((x * hx[cols]).sum(0), 1e-20)
            numbers[cols] += step
            G += hx * step
    return St, Tt


def solve(w, H, grid, damp=0.1, sweeps=1, refits=True):
    """A dict with the codes' values C, scales S and offsets T, all (rows, columns), so that the new weights are C * S + T."""
    n, m = w.shape
    H = H + F32(damp * np.mean(np.diag(H))) * np.eye(m, dtype=F32)
    S, T = grid.fit(w, np.diag(H))
    order = np.argsort(-np.diag(H), kind="stable")
    back = np.argsort(order)
    Hp = np.ascontiguousarray(H[order][:, order])
    take = lambda x: np.ascontiguousarray(x.T[order])
    Wt, St, Tt = take(w), take(S), take(T)
    C = ldlq(Wt, St, Tt, Hp, grid.book.encode)
    size = grid.group or m
    groups = [back[g:g + size] for g in range(0, m, size)]
    if grid.scale_bits < 16 or grid.code == "q2k":  # only the row's number may move: the integers are chosen
        groups = [np.arange(m)]
    for _ in range(sweeps):
        if refits and grid.code != "q2k":
            if grid.scale_bits < 16:
                unit = np.abs(St).max(0)
                ratio = St / unit
                one, _ = refit(Wt, np.broadcast_to(unit, St.shape).copy(), Tt, Hp, C * ratio, groups, False)
                St = ratio * f16(one[:1])
            else:
                St, Tt = refit(Wt, St, Tt, Hp, C, groups, grid.offset)
                St, Tt = f16(St), f16(Tt)
            St = np.where(np.abs(St) < 1e-12, F32(1e-12), St)
        C = sweep(Wt, St, Tt, Hp, C, grid.book.encode, grid.book.unit)
    give = lambda x: np.ascontiguousarray(x[back].T)
    return {"C": give(C), "S": give(St), "T": give(Tt)}


def value(q):
    return q["C"] * q["S"] + q["T"]


def error(w, v, H):
    e = v - w
    return float(np.sum((e @ H) * e) / np.sum((w @ H) * w))


# ---------------------------------------------------------------- training

def torch_forward(m, weights, norms, ids):
    """Logits (windows, tokens, vocabulary); weights and norms by name."""
    import torch
    import torch.nn.functional as F
    n, T = ids.shape
    x = weights["model.embed_tokens.weight"][ids]
    angle = torch.arange(T)[:, None] * torch.tensor(m.freq, dtype=torch.float32)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    norm = lambda v, name: v * torch.rsqrt((v * v).mean(-1, keepdim=True) + m.eps) * norms[name]

    def rope(v):
        a, b = v.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).transpose(1, 2)
    for i in range(m.layers):
        p, w = f"model.layers.{i}.", lambda role: weights[m.name(i, role)]
        h = norm(x, p + "input_layernorm.weight")
        q, k, v = (F.linear(h, w(r)).view(n, T, -1, m.hd) for r in "qkv")
        if p + "self_attn.q_norm.weight" in norms:
            q, k = norm(q, p + "self_attn.q_norm.weight"), norm(k, p + "self_attn.k_norm.weight")
        many = lambda z: z.repeat_interleave(m.heads // m.kv, 1)
        o = F.scaled_dot_product_attention(rope(q), many(rope(k)), many(v.transpose(1, 2)), is_causal=True)
        x = x + F.linear(o.transpose(1, 2).reshape(n, T, -1), w("o"))
        h = norm(x, p + "post_attention_layernorm.weight")
        x = x + F.linear(F.silu(F.linear(h, w("gate"))) * F.linear(h, w("up")), w("down"))
    return F.linear(norm(x, "model.norm.weight"), weights.get("lm_head.weight", weights["model.embed_tokens.weight"]))


class Trained:
    """A quantized matrix whose scales, and with qat whose codes, follow gradients; codes straight through (docs/tuning.md)."""

    def __init__(self, q, rot, grid, qat):
        import torch
        self.grid, self.shape = grid, q["C"].shape
        t = lambda v: None if v is None else torch.tensor(v)
        self.S, self.T, self.C = t(q["S"]), t(q["T"]), t(q["C"])
        self.rot = tuple(t(v) for v in rot)
        n, m = self.shape
        free = grid.scale_bits == 16 and grid.code != "q2k"  # else the integers stay and only rows move
        self.groups = m // grid.group if grid.group and free else 1
        self.factor = torch.zeros(n, self.groups, 1, requires_grad=True)
        self.row = torch.zeros(n, 1, 1, requires_grad=True)
        self.shift = torch.zeros(n, self.groups, 1, requires_grad=grid.offset)
        self.Z = self.C.clone().requires_grad_(qat)

    def codes(self):
        import torch
        if not self.Z.requires_grad:
            return self.C
        with torch.no_grad():  # down the columns, as the solver has them
            z = self.Z.t().contiguous().numpy().reshape(-1)
            ones = np.ones_like(z)
            c = torch.from_numpy(self.grid.book.encode(z, ones).reshape(self.shape[1], -1)).t()
        return self.Z + (c - self.Z.detach())

    def weight(self):
        n, m = self.shape
        split = lambda v: v.reshape(n, self.groups, -1)
        S = split(self.S) * (self.factor + self.row).exp()
        w = (split(self.codes()) * S + split(self.T) + self.shift * split(self.S)).reshape(n, m)
        qout, qin, gain = self.rot
        w = w if qout is None else qout.t() @ w
        w = w if qin is None else w @ qin
        return w if gain is None else w / gain


def train(m, teacher, kept, grid, a):
    """Settings of llmq's --tune and --qat; the best state by windows held out is kept. Writes m.t."""
    import torch
    import torch.nn.functional as F
    ids = torch.from_numpy(m.tokens(a.text, a.ctx, a.train_tokens))
    held, ids = ids[-6:], ids[:-6]
    tensor = lambda v: torch.tensor(v)
    full = {k: tensor(v) for k, v in teacher.items()}
    norms = {k: tensor(v).requires_grad_() for k, v in teacher.items() if v.ndim == 1}
    mats = {k: Trained(q, rot, grid, a.qat) for k, (q, rot) in kept.items()}
    scales = [p for w in mats.values() for p in (w.factor, w.row, w.shift) if p.requires_grad]
    codes = [w.Z for w in mats.values() if w.Z.requires_grad]
    opt = torch.optim.Adam([{"params": scales, "lr": a.lr}, {"params": list(norms.values()), "lr": a.lr},
                            {"params": codes, "lr": a.code * 2.0 ** (2 - grid.bits)}], betas=(0.9, 0.95))
    warm = 10 if a.qat else 5
    plan = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda s: min((s + 1) / warm, 0.5 + 0.5 * np.cos(np.pi * max(0, s - warm) / max(1, a.steps - warm))))

    def kl(batch, weights):
        with torch.no_grad():
            p = F.log_softmax(torch_forward(m, full, full, batch), -1)
        return F.kl_div(F.log_softmax(torch_forward(m, weights, norms, batch), -1), p, log_target=True, reduction="none").sum(-1).mean()

    def state():
        with torch.no_grad():
            w = {**full, **{k: v.weight() for k, v in mats.items()}}
            return kl(held, w).item(), {**{k: v.numpy().copy() for k, v in w.items()}, **{k: v.numpy().copy() for k, v in norms.items()}}
    best, start = state(), time.time()
    print(f"held out before: KL {best[0]:.4f}", file=sys.stderr)
    for step in range(a.steps):
        batch = ids[[(3 * step + j) * 7 % len(ids) for j in range(3)]]
        loss = kl(batch, {**full, **{k: v.weight() for k, v in mats.items()}})
        opt.zero_grad()
        loss.backward()
        opt.step()
        plan.step()
        if (step + 1) % max(1, a.steps // 10) == 0:
            now = state()
            best = min(best, now, key=lambda s: s[0])
            print(f"step {step + 1}: KL {loss.item():.4f}, held out {now[0]:.4f}, {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    m.t.update(best[1])


# ---------------------------------------------------------------- commands

def cmd_gauss(a):
    x = np.random.default_rng(9).standard_normal(192 * 400).astype(F32)
    print("| bits | code | mean squared error | dB | bits lost against the bound |\n|---|---|--:|--:|--:|")
    for bits in (2, 3):
        for name in a.codes.split(","):
            if name == "e8p" and bits != 2 or bits == 3 and name == "vq4" and not a.slow:
                continue
            book = codebook(bits, name)
            if name == "int":  # its best step
                e = min(np.mean((book.encode(x / s, None) * s - x) ** 2) for s in np.arange(0.3, 1.3, 0.02).astype(F32))
            else:
                e = np.mean((book.encode(x, np.ones_like(x)) - x) ** 2)
            print(f"| {bits} | {name} | {e:.4f} | {-10 * np.log10(e):.2f} | {bits + np.log2(e) / 2:.3f} |", flush=True)


def hessians(m, windows, layers):
    """Gram matrices of the sites of some layers of the full-precision model: {(layer, role): H}."""
    out, x = {}, m.t["model.embed_tokens.weight"][windows]

    def visit(i, roles, h):
        if i in layers:
            out.update({(i, r): H for H in [gram(h)] for r in roles})
        return [m.t[m.name(i, r)] for r in roles]
    for i in range(max(layers) + 1):
        x = m.layer(i, x, visit)
    return out


def cmd_proxy(a):
    m = Model(a.model)
    layers = [int(v) for v in a.layers.split(",")]
    cal, judge = (hessians(m, m.tokens(t, a.ctx, a.tokens), layers) for t in (a.text, a.judge))
    roles = ("q", "k", "v", "o", "gate", "up", "down")
    print("| rotation | grid | bits | " + " | ".join(roles) + " | mean | mean, calibration text | s |\n|" + "---|" * 13, flush=True)
    for grid in [Grid(g) for g in a.grid]:
        for kind in a.rotate.split(","):
            start, rows, seen, bits, weights = time.time(), [], [], 0, 0
            for r in roles:
                e = []
                for i in layers:
                    w, rot = m.t[m.name(i, r)], rotation(kind, m, i, r)
                    q = solve(*rotated(w, cal[i, r], rot), grid, sweeps=a.sweeps, refits=not a.no_refit)
                    v = unrotated(value(q), rot)
                    e.append(error(w, v, judge[i, r]))
                    seen.append(error(w, v, cal[i, r]))
                    bits, weights = bits + grid.bpw(*w.shape) * w.size, weights + w.size
                rows.append(np.mean(e))
            print(f"| {kind} | {grid.text} | {bits / weights:.2f} | " + " | ".join(f"{v:.4f}" for v in rows)
                  + f" | {np.mean(rows):.4f} | {np.mean(seen):.4f} | {time.time() - start:.0f} |", flush=True)


def quantize_model(m, a, grid, kept):
    """All layers in order; every site sees what the quantized weights before it give. Fills kept with {name: (codes and
    scales, rotation)}, writes m.t and returns the bits a weight."""
    x = m.t["model.embed_tokens.weight"][m.tokens(a.text, a.ctx, a.tokens)]
    bits, weights, start = 0, 0, time.time()

    def visit(i, roles, h):
        nonlocal bits, weights
        H = gram(h, mean=2.0)
        for name, rot in [(m.name(i, r), rotation(a.rotate, m, i, r)) for r in roles]:
            w = m.t[name]
            q = solve(*rotated(w, H, rot), grid, sweeps=a.sweeps, refits=not a.no_refit)
            kept[name], m.t[name] = (q, rot), unrotated(value(q), rot)
            bits, weights = bits + grid.bpw(*w.shape) * w.size, weights + w.size
        return [m.t[m.name(i, r)] for r in roles]
    for i in range(m.layers):
        x = m.layer(i, x, visit)
        print(f"layer {i + 1}/{m.layers}, {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    return bits / weights


def write_model(m, out):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for f in m.folder.glob("*.json"):
        shutil.copy(f, out)
    cfg = json.loads((out / "config.json").read_text())
    cfg["torch_dtype"] = "float16"
    (out / "config.json").write_text(json.dumps(cfg, indent=1))
    write_safetensors(out / "model.safetensors", m.t)


def cmd_model(a):
    m, grid, kept = Model(a.model), Grid(a.grid[0]), {}
    teacher = dict(m.t)
    bits = quantize_model(m, a, grid, kept)
    if a.steps:
        train(m, teacher, kept, grid, a)
    write_model(m, a.out)
    print(f"{a.grid[0]} {a.rotate}: {bits:.3f} bits a weight inside the layers, {a.out}")


# What the inner loop of a matrix-vector product would be, on 8-bit activations (a: 4 columns a dword), AVX-512 with VBMI and VNNI.
# Every loop ends one group of 32 columns, its sums scaled into f32, so that all of them do the same work besides decoding.
DECODERS = r"""
#include <immintrin.h>
#include <stdint.h>
#define BEGIN __asm volatile("# LLVM-MCA-BEGIN");
#define END __asm volatile("# LLVM-MCA-END");
#define LOAD(p) _mm512_loadu_si512(p)
#define DP(acc, v, a) acc = _mm512_dpbusd_epi32(acc, v, _mm512_set1_epi32(a))
static inline __m512 flush(__m512 y, __m512i acc, const void *scales) {
    __m512 s = _mm512_cvtph_ps(_mm256_loadu_si256(scales));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), s, y);
}
/* 16 rows x 32 columns, 4 bits: 512 weights a turn */
void int4(float *out, const uint8_t *w, const int *a, int64_t n) {
    __m512 y = _mm512_setzero_ps();
    __m512i low = _mm512_set1_epi8(15);
    for (int64_t i = 0; i < n; i++, w += 288, a += 9) { BEGIN
        __m512i acc = _mm512_set1_epi32(a[8]), acc2 = _mm512_setzero_si512();
        for (int j = 0; j < 4; j++) {
            __m512i d = LOAD(w + 64 * j);
            DP(acc, _mm512_and_si512(d, low), a[j]);
            DP(acc2, _mm512_and_si512(_mm512_srli_epi16(d, 4), low), a[4 + j]);
        }
        y = flush(y, _mm512_add_epi32(acc, acc2), w + 256);
    END }
    _mm512_storeu_ps(out, y);
}
/* 16 rows x 32 columns, 2 bits, any 4 levels (table repeated, so that higher bits of an index do not matter): 512 weights a turn */
void level2(float *out, const uint8_t *w, const int *a, int64_t n, const uint8_t *t) {
    __m512 y = _mm512_setzero_ps();
    __m512i table = LOAD(t);
    for (int64_t i = 0; i < n; i++, w += 160, a += 9) { BEGIN
        __m512i acc = _mm512_set1_epi32(a[8]), acc2 = _mm512_setzero_si512();
        for (int j = 0; j < 2; j++) {
            __m512i d = LOAD(w + 64 * j);
            DP(acc, _mm512_permutexvar_epi8(d, table), a[4 * j]);
            DP(acc2, _mm512_permutexvar_epi8(_mm512_srli_epi16(d, 2), table), a[4 * j + 1]);
            DP(acc, _mm512_permutexvar_epi8(_mm512_srli_epi16(d, 4), table), a[4 * j + 2]);
            DP(acc2, _mm512_permutexvar_epi8(_mm512_srli_epi16(d, 6), table), a[4 * j + 3]);
        }
        y = flush(y, _mm512_add_epi32(acc, acc2), w + 128);
    END }
    _mm512_storeu_ps(out, y);
}
/* tcq7, 2 bits: rings of 32 rows of a column; 32 rows x 8 columns are 64 bytes. vpermb brings each pair of rows its two bytes of 4
   columns, vpmultishiftqb cuts the windows of 7 bits, vpermi2b looks them up among 128: 1024 weights a turn */
void trellis7(float *out, const uint8_t *w, const int *a, int64_t n, const uint8_t *t) {
    __m512 y0 = _mm512_setzero_ps(), y1 = y0;
    __m512i t0 = LOAD(t), t1 = LOAD(t + 64), at[4] = {LOAD(t + 128), LOAD(t + 192), LOAD(t + 256), LOAD(t + 320)}, cut = LOAD(t + 384);
    for (int64_t i = 0; i < n; i++, w += 320, a += 9) { BEGIN
        __m512i acc0 = _mm512_set1_epi32(a[8]), acc1 = acc0;
        for (int j = 0; j < 4; j++) {
            __m512i d = LOAD(w + 64 * j);
            for (int c = 0; c < 2; c++) {
                __m512i x = _mm512_multishift_epi64_epi8(cut, _mm512_permutexvar_epi8(at[2 * c], d));
                DP(acc0, _mm512_permutex2var_epi8(t0, x, t1), a[2 * j + c]);
                x = _mm512_multishift_epi64_epi8(cut, _mm512_permutexvar_epi8(at[2 * c + 1], d));
                DP(acc1, _mm512_permutex2var_epi8(t0, x, t1), a[2 * j + c]);
            }
        }
        y0 = flush(y0, acc0, w + 256), y1 = flush(y1, acc1, w + 288);
    END }
    _mm512_storeu_ps(out, y0), _mm512_storeu_ps(out + 16, y1);
}
/* tcq6 the same way: one vpermb looks a window of 6 bits up */
void trellis6(float *out, const uint8_t *w, const int *a, int64_t n, const uint8_t *t) {
    __m512 y0 = _mm512_setzero_ps(), y1 = y0;
    __m512i table = LOAD(t), at[4] = {LOAD(t + 128), LOAD(t + 192), LOAD(t + 256), LOAD(t + 320)}, cut = LOAD(t + 384);
    for (int64_t i = 0; i < n; i++, w += 320, a += 9) { BEGIN
        __m512i acc0 = _mm512_set1_epi32(a[8]), acc1 = acc0;
        for (int j = 0; j < 4; j++) {
            __m512i d = LOAD(w + 64 * j);
            for (int c = 0; c < 2; c++) {
                __m512i x = _mm512_multishift_epi64_epi8(cut, _mm512_permutexvar_epi8(at[2 * c], d));
                DP(acc0, _mm512_permutexvar_epi8(x, table), a[2 * j + c]);
                x = _mm512_multishift_epi64_epi8(cut, _mm512_permutexvar_epi8(at[2 * c + 1], d));
                DP(acc1, _mm512_permutexvar_epi8(x, table), a[2 * j + c]);
            }
        }
        y0 = flush(y0, acc0, w + 256), y1 = flush(y1, acc1, w + 288);
    END }
    _mm512_storeu_ps(out, y0), _mm512_storeu_ps(out + 16, y1);
}
/* tcq4: a code and that of the row above, which is the lane before: two vectors of 16 rows x 16 columns, laid as level2's. The ring
   closes by valignd. 16 entries, repeated: 1024 weights a turn */
void trellis4(float *out, const uint8_t *w, const int *a, int64_t n, const uint8_t *t) {
    __m512 y[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    __m512i table = LOAD(t), odd = _mm512_set1_epi8(0x33);
    for (int64_t i = 0; i < n; i++, w += 320, a += 9) { BEGIN
        __m512i acc[2] = {_mm512_set1_epi32(a[8]), _mm512_set1_epi32(a[8])};
        for (int j = 0; j < 2; j++) {
            __m512i d[2] = {LOAD(w + 128 * j), LOAD(w + 128 * j + 64)};
            for (int h = 0; h < 2; h++) {
                __m512i above = _mm512_alignr_epi32(d[h], d[1 - h], 15);
                __m512i even = _mm512_ternarylogic_epi32(odd, d[h], _mm512_slli_epi16(above, 2), 0xca);
                __m512i uneven = _mm512_ternarylogic_epi32(odd, _mm512_srli_epi16(d[h], 2), above, 0xca);
                DP(acc[h], _mm512_permutexvar_epi8(even, table), a[4 * j]);
                DP(acc[h], _mm512_permutexvar_epi8(uneven, table), a[4 * j + 1]);
                DP(acc[h], _mm512_permutexvar_epi8(_mm512_srli_epi16(even, 4), table), a[4 * j + 2]);
                DP(acc[h], _mm512_permutexvar_epi8(_mm512_srli_epi16(uneven, 4), table), a[4 * j + 3]);
            }
        }
        for (int h = 0; h < 2; h++) y[h] = flush(y[h], acc[h], w + 256 + 32 * h);
    END }
    _mm512_storeu_ps(out, y[0]), _mm512_storeu_ps(out + 16, y[1]);
}
/* 1MAD of QTIP with 16-bit windows: value = the sum of the bytes of state * m + b, so the product of bytes needs no table: 512 weights */
void mad16(float *out, const uint8_t *w, const int *a, int64_t n, const uint8_t *t) {
    __m512 y = _mm512_setzero_ps();
    __m512i at[4] = {LOAD(t), LOAD(t + 64), LOAD(t + 128), LOAD(t + 192)}, shift = LOAD(t + 256), window = _mm512_set1_epi32(65535);
    __m512i m = _mm512_set1_epi32(34038481), b = _mm512_set1_epi32(76625530);
    for (int64_t i = 0; i < n; i++, w += 160, a += 33) { BEGIN
        __m512i acc = _mm512_set1_epi32(a[32]), acc2 = _mm512_setzero_si512();
        _Pragma("unroll") for (int k = 0; k < 32; k++) {
            __m512i d = LOAD(w + 64 * (k / 16));
            __m512i s = _mm512_srlv_epi32(_mm512_permutexvar_epi8(at[k % 4], d), shift);
            __m512i x = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_and_si512(s, window), m), b);
            if (k & 1) DP(acc, x, a[k]); else DP(acc2, x, a[k]);
        }
        y = flush(y, _mm512_add_epi32(acc, acc2), w + 128);
    END }
    _mm512_storeu_ps(out, y);
}
/* E8P: 16 bits for 8 rows of a column: magnitudes gathered from 256 entries of 8 bytes, 7 signs and their parity, the shift: 512 weights */
void e8p(float *out, const uint8_t *w, const int *a, int64_t n, const uint8_t *t) {
    __m512 y = _mm512_setzero_ps();
    __m512i place = LOAD(t), bit = LOAD(t + 64), spread = LOAD(t + 128), one = _mm512_set1_epi64(1), byte = _mm512_set1_epi64(255);
    for (int64_t i = 0; i < n; i++, w += 160, a += 9) { BEGIN
        __m512i acc = _mm512_set1_epi32(a[8]), acc2 = _mm512_setzero_si512();
        _Pragma("unroll") for (int k = 0; k < 8; k++) {
            __m512i c = _mm512_cvtepu16_epi64(_mm_loadu_si128((const void *)(w + 16 * k)));
            __m512i mag = _mm512_i64gather_epi64(_mm512_and_si512(c, byte), t + 192, 8);
            __m512i s = _mm512_srli_epi64(c, 8);
            __m512i odd = _mm512_and_si512(_mm512_xor_si512(_mm512_popcnt_epi64(s), mag), one);  // the entry's parity: its lowest bit
            s = _mm512_or_si512(s, _mm512_slli_epi64(odd, 7));
            __mmask64 minus = _mm512_test_epi8_mask(_mm512_shuffle_epi8(s, spread), bit);
            __m512i v = _mm512_mask_sub_epi8(mag, minus, _mm512_setzero_si512(), mag);
            v = _mm512_add_epi8(v, _mm512_shuffle_epi8(_mm512_srli_epi64(c, 15), spread));
            v = _mm512_permutexvar_epi8(place, v);
            if (k & 1) DP(acc, v, a[k]); else DP(acc2, v, a[k]);
        }
        y = flush(y, _mm512_add_epi32(acc, acc2), w + 128);
    END }
    _mm512_storeu_ps(out, y);
}
"""


# The same for AVX2, values of 0..63 so that two products add in 16 bits. These run here: their speed is measured, too.
DECODERS_AVX2 = r"""
#include <immintrin.h>
#include <stdint.h>
#define BEGIN __asm volatile("# LLVM-MCA-BEGIN");
#define END __asm volatile("# LLVM-MCA-END");
#define LOAD(p) _mm256_loadu_si256((const void *)(p))
#define AND(x) _mm256_and_si256(x, low)
#define LOOK(x) _mm256_shuffle_epi8(table, AND(x))
#define MUL(v, a) _mm256_maddubs_epi16(v, _mm256_set1_epi32(a))
#define SUM(acc, p, q) acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_add_epi16(p, q), _mm256_set1_epi16(1)))
static inline __m256 flush(__m256 y, __m256i acc, const void *scales) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), _mm256_cvtph_ps(_mm_loadu_si128(scales)), y);
}
/* 8 rows x 32 columns, 4 bits: 256 weights a turn */
void int4(float *out, const uint8_t *w, const int *a, int64_t n, const uint8_t *t) {
    __m256 y = _mm256_setzero_ps();
    __m256i low = _mm256_set1_epi8(15);
    for (int64_t i = 0; i < n; i++, w += 144, a += 9) { BEGIN
        __m256i acc = _mm256_set1_epi32(a[8]);
        for (int j = 0; j < 4; j++) {
            __m256i d = LOAD(w + 32 * j);
            SUM(acc, MUL(AND(d), a[j]), MUL(AND(_mm256_srli_epi16(d, 4)), a[4 + j]));
        }
        y = flush(y, acc, w + 128);
    END }
    _mm256_storeu_ps(out, y);
}
/* 8 rows x 32 columns, 2 bits, any 4 levels: 256 weights a turn */
void level2(float *out, const uint8_t *w, const int *a, int64_t n, const uint8_t *t) {
    __m256 y = _mm256_setzero_ps();
    __m256i low = _mm256_set1_epi8(3), table = LOAD(t);
    for (int64_t i = 0; i < n; i++, w += 80, a += 9) { BEGIN
        __m256i acc = _mm256_set1_epi32(a[8]);
        for (int j = 0; j < 2; j++) {
            __m256i d = LOAD(w + 32 * j);
            SUM(acc, MUL(LOOK(d), a[4 * j]), MUL(LOOK(_mm256_srli_epi16(d, 2)), a[4 * j + 1]));
            SUM(acc, MUL(LOOK(_mm256_srli_epi16(d, 4)), a[4 * j + 2]), MUL(LOOK(_mm256_srli_epi16(d, 6)), a[4 * j + 3]));
        }
        y = flush(y, acc, w + 64);
    END }
    _mm256_storeu_ps(out, y);
}
/* tcq4: 32 rows as four vectors of 8; the rows above are a load 4 bytes before, or the end of the ring: 1024 weights a turn */
void trellis4(float *out, const uint8_t *w, const int *a, int64_t n, const uint8_t *t) {
    __m256 y[4] = {0};
    __m256i low = _mm256_set1_epi8(15), odd = _mm256_set1_epi8(0x33), table = LOAD(t);
    for (int64_t i = 0; i < n; i++, w += 320, a += 9) { BEGIN
        _Pragma("unroll") for (int h = 0; h < 4; h++) {
            __m256i acc = _mm256_set1_epi32(a[8]);
            _Pragma("unroll") for (int j = 0; j < 2; j++) {
                const uint8_t *p = w + 128 * j + 32 * h;
                __m256i d = LOAD(p), above;
                if (h) above = LOAD(p - 4);
                else above = _mm256_blend_epi32(_mm256_permutevar8x32_epi32(d, _mm256_set_epi32(6, 5, 4, 3, 2, 1, 0, 0)),
                                                _mm256_castsi128_si256(_mm_loadu_si32(p + 124)), 1);
                __m256i up = _mm256_slli_epi16(above, 2), down = _mm256_srli_epi16(d, 2);
                __m256i even = _mm256_xor_si256(up, _mm256_and_si256(odd, _mm256_xor_si256(up, d)));
                __m256i uneven = _mm256_xor_si256(above, _mm256_and_si256(odd, _mm256_xor_si256(above, down)));
                SUM(acc, MUL(LOOK(even), a[4 * j]), MUL(LOOK(uneven), a[4 * j + 1]));
                SUM(acc, MUL(LOOK(_mm256_srli_epi16(even, 4)), a[4 * j + 2]), MUL(LOOK(_mm256_srli_epi16(uneven, 4)), a[4 * j + 3]));
            }
            y[h] = flush(y[h], acc, w + 256 + 16 * h);
        }
    END }
    for (int h = 0; h < 4; h++) _mm256_storeu_ps(out + 8 * h, y[h]);
}
"""


def check_trellis4(lib):
    """The rings of the AVX2 loop against plain ones: 32 rows x 32 columns, scale 1."""
    rng = np.random.default_rng(6)
    codes, table = rng.integers(0, 4, (32, 32)), rng.integers(0, 64, 16).astype(np.uint8)
    act = rng.integers(-127, 128, 32).astype(np.int8)
    value = table[codes | np.roll(codes, 1, 0) << 2].astype(np.int64)
    # byte b of row r's dword in block j: columns 16 j + b + 4 f, field f in bits 2 f
    packed = sum(codes.reshape(32, 2, 4, 4)[:, :, f] << 2 * f for f in range(4)).transpose(1, 0, 2).astype(np.uint8)
    block = np.concatenate([packed.reshape(-1), np.ones(32, np.float16).view(np.uint8)])
    out, a = np.empty(32, F32), np.concatenate([act.view(np.int32), np.zeros(1, np.int32)])
    lib.trellis4(out.ctypes, np.ascontiguousarray(block).ctypes, a.ctypes, 1, np.tile(table, 2).ctypes)
    return np.array_equal(out, (value @ act.astype(np.int64)).astype(F32))


def decode_avx2(a, d):
    """Counts, llvm-mca's cycles on Zen 3, and the speed on this machine from the second-level cache, one thread."""
    (d / "k2.c").write_text(DECODERS_AVX2)
    flags = [a.clang, "-O2", "-funroll-loops", "-mavx2", "-mfma", "-mf16c"]
    subprocess.run([*flags, "-shared", "-fPIC", d / "k2.c", "-o", d / "k2.so"], check=True)
    lib = ctypes.CDLL(str(d / "k2.so"))
    for f in (lib.int4, lib.level2, lib.trellis4):
        f.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64, ctypes.c_void_p]
    print(f"\nAVX2; trellis4's rings are right: {check_trellis4(lib)}\n\n| decoder | instructions per 64 weights | weights a ns, measured |\n|---|--:|--:|")
    for name, weights, size in (("int4", 256, 144), ("level2", 256, 80), ("trellis4", 1024, 320)):
        one = DECODERS_AVX2.split("/* ")[0] + "".join("/* " + part for part in DECODERS_AVX2.split("/* ")[1:] if f"void {name}(" in part)
        (d / "k.c").write_text(one)
        subprocess.run([*flags, "-S", d / "k.c", "-o", d / "k.s"], check=True)
        done = subprocess.run([a.mca, "-mcpu=znver3", "-iterations=100", d / "k.s"], capture_output=True, text=True, check=True)
        count = float(next(x for x in done.stdout.splitlines() if x.startswith("Instructions")).split(":")[1]) / 100
        n = 131072 // size
        buffer, act, out = np.zeros(n * size + 64, np.uint8), np.zeros(9 * n + 9, np.int32), np.empty(64, F32)
        call = lambda: getattr(lib, name)(out.ctypes, buffer.ctypes, act.ctypes, n, np.zeros(64, np.uint8).ctypes)
        best = 1e9
        for _ in range(3000):  # the least time: the machine may be busy
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
        print(f"| {name} | {count * 64 / weights:.1f} | {n * weights / best / 1e9:.1f} |")


def cmd_decode(a):
    """Counts of the compiled loops, and llvm-mca's cycles on Ice Lake (its tables know no newer Zen)."""
    with tempfile.TemporaryDirectory() as d:
        d = pathlib.Path(d)
        flags = ["-O2", "-funroll-loops", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vbmi", "-mavx512vnni", "-mavx512vpopcntdq"]
        print("| decoder | weights a turn | bits | instructions per 64 weights | of these shuffles | cycles per 64, Ice Lake | weights a cycle |"
              "\n|---|--:|--:|--:|--:|--:|--:|")
        for name, weights, size in (("int4", 512, 288), ("level2", 512, 160), ("trellis4", 1024, 320), ("trellis6", 1024, 320),
                                   ("trellis7", 1024, 320), ("mad16", 512, 160), ("e8p", 512, 160)):
            one = DECODERS.split("/* ")[0] + "".join("/* " + part for part in DECODERS.split("/* ")[1:] if f"void {name}(" in part)
            (d / "k.c").write_text(one)
            subprocess.run([a.clang, *flags, "-S", d / "k.c", "-o", d / "k.s"], check=True)
            done = subprocess.run([a.mca, "-mcpu=icelake-server", "-iterations=100", d / "k.s"], capture_output=True, text=True, check=True)
            figure = lambda key: float(next(x for x in done.stdout.splitlines() if x.startswith(key)).split(":")[1])
            body = (d / "k.s").read_text().split("LLVM-MCA-BEGIN")[1].split("LLVM-MCA-END")[0]
            shuffles = sum(body.count(f"\t{op}") for op in ("vpermb", "vpermi2b", "vpermt2b", "vpmultishiftqb", "vpshufb"))
            per = 64 / weights
            print(f"| {name} | {weights} | {8 * size / weights:.2f} | {figure('Instructions') / 100 * per:.1f} | {shuffles * per:.1f} | "
                  f"{figure('Total Cycles') / 100 * per:.1f} | {weights * 100 / figure('Total Cycles'):.0f} |")
        decode_avx2(a, d)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(required=True)
    p = sub.add_parser("gauss")
    p.add_argument("--codes", default="int,nl,vq2,vq4,e8p,tcq6,tcq7,tcq8,tcq10,tcq12.192")
    p.add_argument("--slow", action="store_true")
    p.set_defaults(run=cmd_gauss)
    p = sub.add_parser("decode")
    p.add_argument("--clang", default="clang")
    p.add_argument("--mca", default="llvm-mca")
    p.set_defaults(run=cmd_decode)
    for name, run in (("proxy", cmd_proxy), ("model", cmd_model)):
        p = sub.add_parser(name)
        p.add_argument("model")
        p.add_argument("--text", required=True, help="calibration text")
        p.add_argument("--grid", action="append", required=True)
        p.add_argument("--rotate", default="none", help="none, fold or full (proxy: a list)")
        p.add_argument("--tokens", type=int, default=8192)
        p.add_argument("--ctx", type=int, default=512)
        p.add_argument("--sweeps", type=int, default=1, help="passes of refit and sweep after the feedback")
        p.add_argument("--no-refit", action="store_true")
        if name == "proxy":
            p.add_argument("--judge", required=True, help="another text, whose Gram matrices weigh the errors")
            p.add_argument("--layers", default="0,9,19,29")
        if name == "model":
            p.add_argument("-o", "--out", required=True)
            p.add_argument("--steps", type=int, default=0, help="steps of training after the solver")
            p.add_argument("--qat", action="store_true", help="train codes, too")
            p.add_argument("--train-tokens", type=int, default=65536)
            p.add_argument("--lr", type=float, default=0.0007)
            p.add_argument("--code", type=float, default=0.02, help="rate of codes, in levels of 2 bits")
        p.set_defaults(run=run)
    a = ap.parse_args()
    a.run(a)


if __name__ == "__main__":
    main()
