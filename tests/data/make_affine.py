#!/usr/bin/env python3
"""Makes affine/*.bin: what PyTorch and NumPy make of random data, for tests/affine.

Usage: make_affine.py FOLDER   (needs numpy and torch with its fbgemm engine; made with torch 2.15.0, whose torch.ao
still has the eager observers). The data itself is not stored: numbers() below and tests/affine/cases.h make the same
floats from a seed. Records are little-endian i32, but for the floats and bytes named here:

observers.bin  kind seed dist type symmetric qmin qmax batches channels outer inner, f32 constant (averaging or
               percentile), then for each channel f32 min max scale, i32 zero point. kind 0 min-max, 1 moving average,
               2 percentile, 3 MSE (min and max are 0: PyTorch's own search gives scale and zero point), 4 entropy.
elements.bin   seed dist type qmin qmax outer channels inner group, n_params x (f32 scale, i32 zero point), n bytes q,
               n f32 dequantized
fixed.bin      f64 real, i32 multiplier shift, 8 x (i32 x, i32 product)
layers.bin     seed linear? n in_h in_w, the 11 numbers of llmq_conv2d, relu bias?, f32 x scale, i32 x zero, f32 y scale,
               i32 y zero, n bytes y (NHWC). Weights, their scales, the bias and x come from the seed.
"""
import os
import struct
import sys
import warnings

import numpy as np
import torch
from torch.ao.quantization import observer as ao

warnings.filterwarnings("ignore")
torch.backends.quantized.engine = "fbgemm"
torch.set_num_threads(1)
F = np.float32


def words(seed, n):
    """splitmix64 of seed * 2^32 + i"""
    with np.errstate(over="ignore"):
        z = np.arange(n, dtype=np.uint64) + np.uint64(seed << 32)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def unit(seed, n):
    """doubles in [-1, 1)"""
    return ((words(seed, n) >> np.uint64(40)).astype(np.float64) - 8388608) / 8388608


def numbers(seed, dist, n):
    """f32: 0 uniform, 1 cubed, 2 to the ninth (outliers), 3 cubed without what is negative, 4 tiny, 5 large and shifted"""
    u = unit(seed, n)
    cube = u * u * u
    x = {0: u, 1: cube * 4, 2: cube * cube * cube * 100, 3: np.where(cube > 0, cube * 6, 0), 4: u * 2.0 ** -30,
         5: u * 1000 + 600}[dist]
    return x.astype(F)


class Pick:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, lo, hi):
        return int(self.rng.integers(lo, hi + 1))


SPECS = [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0), (0, 1, 0, 0), (0, 0, 0, 127), (1, 0, -64, 63), (1, 1, -127, 127),
         (0, 0, 0, 15), (1, 1, -8, 7), (0, 1, 0, 100)]  # type symmetric quant_min quant_max


def ao_args(spec, per_channel):
    signed, symmetric, lo, hi = spec
    scheme = {(0, 0): torch.per_tensor_affine, (0, 1): torch.per_tensor_symmetric, (1, 0): torch.per_channel_affine,
              (1, 1): torch.per_channel_symmetric}[per_channel, symmetric]
    args = dict(dtype=torch.qint8 if signed else torch.quint8, qscheme=scheme)
    if lo or hi:
        args.update(quant_min=lo, quant_max=hi)
    return args


def batches_of(seed, dist, batches, outer, channels, inner):
    x = numbers(seed, dist, batches * outer * channels * inner)
    return x.reshape(batches, outer, channels, inner)


def qparams(spec, lo, hi):
    o = ao.MinMaxObserver(**ao_args(spec, 0))
    o.min_val, o.max_val = torch.tensor(F(lo)), torch.tensor(F(hi))
    s, z = o.calculate_qparams()
    return float(s), int(z)


def entropy_range(x, spec, bins):
    """Brute force over the candidates that include/llmq_affine.h defines, Q written out in full."""
    signed, symmetric, qmin, qmax = spec
    if not (qmin or qmax):
        qmin, qmax = (-128, 127) if signed else (0, 255)
    lo, hi = min(0.0, float(x.min())), max(0.0, float(x.max()))
    exponent = -126
    while np.floor(hi / 2.0 ** exponent) - np.floor(lo / 2.0 ** exponent) >= bins:
        exponent += 1
    w = 2.0 ** exponent
    at = np.floor(x[x != 0].astype(np.float64) / w).astype(np.int64)
    first, last = int(np.floor(lo / w)), int(np.floor(hi / w))
    if symmetric:
        middle = 0 if signed else (128 if spec[2:] == (0, 0) else (qmin + qmax) // 2)
        at = np.where(at < 0, -1 - at, at)
        n, zero, levels, step = max(-first, last + 1), 0, qmax - middle + 1, 1
    else:
        at = at - first
        n, zero, levels = last - first + 1, -first, qmax - qmin + 1
        step = max(1, n // 64)
    counts = np.bincount(at, minlength=n).astype(np.float64)
    total, best = counts.sum(), (np.inf, 0, zero, n, 0)
    for i in range(zero // step + 1):
        a = i * step
        for j in range((n - zero) // step + 1):
            b = n - j * step
            if b - a < levels:
                break
            inside = counts[a:b]
            p = inside.copy()
            p[0] += counts[:a].sum()
            p[-1] += counts[b:].sum()
            cuts = np.arange(levels + 1) * (b - a) // levels
            full = inside > 0
            mass = np.add.reduceat(inside, cuts[:-1])
            k = np.add.reduceat(full.astype(np.float64), cuts[:-1])
            q = np.repeat(mass / np.maximum(k, 1), np.diff(cuts)) * full
            if inside.sum() == 0 or ((p > 0) & (q == 0)).any():
                continue
            use = p > 0
            kl = (p[use] / total * np.log((p[use] / total) / (q[use] / inside.sum()))).sum()
            if kl < best[0] - 1e-12 or (kl < best[0] + 1e-12 and (i + j) < best[4]):
                best = (kl, a, zero, b, i + j)
    _, a, _, b, _ = best
    if symmetric:
        m = min((b - zero) * w, max(-lo, hi))
        return -m, m
    return max((a - zero) * w, lo), min((b - zero) * w, hi)


def observers(f):
    pick = Pick(1)
    for case in range(360):
        kind = 0 if case < 100 else 1 if case < 180 else 2 if case < 240 else 3 if case < 300 else 4
        spec = SPECS[pick(0, len(SPECS) - 1)]
        channels = pick(1, 5) if kind < 3 and case % 2 else 1
        outer, inner, batches, dist = pick(1, 4), pick(1, 60), pick(1, 4), pick(0, 5)
        constant = 0.0
        if kind == 1:
            constant = float(F([0.01, 0.1, 0.5, 1][pick(0, 3)]))
        if kind == 2:
            constant = float(F([90, 99, 99.9, 99.99, 100][pick(0, 4)]))
            inner = pick(1, 400)
        if kind >= 3:
            outer, inner, dist = 1, pick(500, 5000), pick(0, 3)
            spec = SPECS[pick(0, 6)]
        x = batches_of(case + 1, dist, batches, outer, channels, inner)
        lo, hi = np.zeros(channels, F), np.zeros(channels, F)
        if kind == 2 or kind == 4:
            flat = x.transpose(2, 0, 1, 3).reshape(channels, -1)
            if kind == 2:
                lo = np.percentile(flat.astype(np.float64), 100 - constant, axis=1).astype(F)
                hi = np.percentile(flat.astype(np.float64), constant, axis=1).astype(F)
            else:
                lo[0], hi[0] = entropy_range(flat[0], spec, 1024)
            s, z = zip(*(qparams(spec, a, b) for a, b in zip(lo, hi)))
        else:
            args = ao_args(spec, int(channels > 1))
            if kind == 3:
                o = ao.HistogramObserver(**args)
            elif kind == 0:
                o = ao.PerChannelMinMaxObserver(ch_axis=1, **args) if channels > 1 else ao.MinMaxObserver(**args)
            else:
                args["averaging_constant"] = constant
                o = (ao.MovingAveragePerChannelMinMaxObserver(ch_axis=1, **args) if channels > 1
                     else ao.MovingAverageMinMaxObserver(**args))
            for batch in x:
                o(torch.from_numpy(batch.copy()))
            s, z = (v.tolist() for v in o.calculate_qparams())
            if kind != 3:
                lo, hi = o.min_val.reshape(-1).numpy(), o.max_val.reshape(-1).numpy()
        f.write(struct.pack("<11if", kind, case + 1, dist, *spec, batches, channels, outer, inner, constant))
        for c in range(channels):
            f.write(struct.pack("<3fi", lo[c], hi[c], s[c], int(z[c])))


def elements(f):
    pick = Pick(2)
    for case in range(240):
        signed, _, lo, hi = SPECS[pick(0, len(SPECS) - 1)]
        if not (lo or hi):
            lo, hi = (-128, 127) if signed else (0, 255)
        group = pick(1, 9) if case % 4 == 3 else 0
        outer, channels, inner, dist = (1 if group else pick(1, 3)), pick(1, 4) if case % 2 else 1, pick(1, 24), pick(0, 5)
        x = numbers(case + 1, dist, outer * channels * inner).reshape(outer, channels, inner)
        groups = -(-inner // group) if group else 1
        n = channels * groups
        scale = (np.abs(unit(case + 1000, n)) * 0.02 + 1e-4).astype(F) * F(max(float(np.abs(x).max()), 1e-12))
        zero = [pick(lo, hi) for _ in range(n)]
        at = np.arange(inner) // (group or inner)  # parameter of each element of a row
        which = (np.arange(channels)[:, None] * groups + at[None, :]).reshape(-1)
        s, z = torch.from_numpy(scale[which].copy()), torch.tensor(np.array(zero)[which])
        flat = torch.from_numpy(x.reshape(outer, -1).copy())
        if lo in (0, -128) and hi in (255, 127) and hi - lo == 255:
            t = torch.quantize_per_channel(flat, s.double(), z, 1, torch.qint8 if signed else torch.quint8)
            q, d = t.int_repr().numpy(), t.dequantize().numpy()
        else:  # ranges inside the type: fake quantization has them, the integers follow from its result
            d = torch.fake_quantize_per_channel_affine(flat, s, z.int(), 1, lo, hi).numpy()
            q = np.rint(d.astype(np.float64) / s.numpy() + z.numpy()).astype(np.int64)
            assert ((q - z.numpy()).astype(F) * s.numpy() == d).all()
        f.write(struct.pack("<9i", case + 1, dist, signed, lo, hi, outer, channels, inner, group))
        for k in range(n):
            f.write(struct.pack("<fi", scale[k], zero[k]))
        f.write(q.astype(np.int64).astype(np.uint8).tobytes() + d.astype("<f4").tobytes())


def fixed(f):
    """gemmlowp and TFLite in Python's integers: no overflow to think of but the one that saturates."""
    pick, rng = Pick(3), np.random.default_rng(3)
    for case in range(220):
        real = float(rng.uniform(0.5, 1) * 2.0 ** pick(-36 if case % 10 == 0 else -20, 6 if case % 3 else 20))
        mantissa, shift = np.frexp(real)
        q, shift = int(np.floor(float(mantissa) * 2 ** 31 + 0.5)), int(shift)
        if q == 2 ** 31:
            q, shift = q // 2, shift + 1
        if shift < -31:
            q, shift = 0, 0
        f.write(struct.pack("<d2i", real, q, shift))
        for k in range(8):
            x = [pick(-2 ** 31, 2 ** 31 - 1), pick(-70000, 70000), pick(-300, 300), pick(-9, 9)][k % 4] >> (k // 4 * 3)
            x = [-2 ** 31, 2 ** 31 - 1, 0, x][k % 4] if k < 4 else x
            a = min(max(x << max(shift, 0), -2 ** 31), 2 ** 31 - 1)
            product = a * q + (1 << 30 if a * q >= 0 else 1 - (1 << 30))
            high = abs(product) // 2 ** 31 * (1 if product >= 0 else -1)  # C's division
            e = max(-shift, 0)
            low = high & ((1 << e) - 1)
            y = (high >> e) + (1 if low > (((1 << e) - 1) >> 1) + (1 if high < 0 else 0) else 0)
            f.write(struct.pack("<2i", x, y))


def layers(f):
    pick = Pick(4)
    for case in range(440):
        linear = case < 220
        if linear:
            n, h, w = pick(1, 9), 1, 1
            ic, oc, groups, kh, kw, sh, sw, ph, pw, dh, dw = pick(1, 150), pick(1, 40), 1, 1, 1, 1, 1, 0, 0, 1, 1
        else:
            groups = [1, 1, 2, 3, 0][pick(0, 4)]
            ic, oc = pick(1, 9), pick(1, 5)
            if groups == 0:  # depthwise
                ic = pick(2, 19)
                groups = oc = ic
            else:
                ic, oc = ic * groups, oc * groups
            kh, kw, sh, sw, dh, dw = pick(1, 3), pick(1, 3), pick(1, 2), pick(1, 2), pick(1, 2), pick(1, 2)
            ph, pw = pick(0, 2), pick(0, 2)
            n, h, w = pick(1, 2), pick(5, 6), pick(5, 6)
        relu, bias = pick(0, 1), pick(0, 1)
        per = ic // groups * kh * kw
        x = (words(case * 8 + 1, n * h * w * ic) >> np.uint64(56)).astype(np.uint8).reshape(n, h, w, ic)
        q = (words(case * 8 + 2, oc * per) >> np.uint64(56)).astype(np.int64).astype(np.int8)
        ws = (np.abs(unit(case * 8 + 3, oc)) * 0.02 + 0.001).astype(F)
        b = (unit(case * 8 + 4, oc) * 20).astype(F) if bias else np.zeros(oc, F)
        xs, xz = float(F(pick(10, 400) / 4096)), pick(0, 255)
        ys, yz = float(F(xs * 0.01 * 70 * max(per, 4) ** 0.5 * pick(5, 30) / 400)), pick(0, 255)
        wt = q.reshape(oc, kh, kw, ic // groups).transpose(0, 3, 1, 2).copy()
        W = torch._make_per_channel_quantized_tensor(torch.from_numpy(wt), torch.from_numpy(ws).double(),
                                                     torch.zeros(oc, dtype=torch.long), 0)
        X = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), xs, xz)
        B = torch.from_numpy(b) if bias else None
        if linear:
            W = torch._make_per_channel_quantized_tensor(torch.from_numpy(q.reshape(oc, ic).copy()),
                                                         torch.from_numpy(ws).double(), torch.zeros(oc, dtype=torch.long), 0)
            X = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x.reshape(n, ic).copy()), xs, xz)
            packed = torch.ops.quantized.linear_prepack(W, B)
            op = torch.ops.quantized.linear_relu if relu else torch.ops.quantized.linear
            y = op(X, packed, ys, yz).int_repr().numpy()
        else:
            packed = torch.ops.quantized.conv2d_prepack(W, B, [sh, sw], [ph, pw], [dh, dw], groups)
            op = torch.ops.quantized.conv2d_relu if relu else torch.ops.quantized.conv2d
            y = op(X, packed, ys, yz).int_repr().numpy().transpose(0, 2, 3, 1)
        f.write(struct.pack("<5i11i2ififi", case, linear, n, h, w, ic, oc, groups, kh, kw, sh, sw, ph, pw, dh, dw,
                            relu, bias, xs, xz, ys, yz))
        f.write(np.ascontiguousarray(y).tobytes())


if __name__ == "__main__":
    for make in (observers, elements, fixed, layers):
        with open(os.path.join(sys.argv[1], make.__name__ + ".bin"), "wb") as out:
            make(out)
