#!/usr/bin/env python3
"""examples/tinycnn beside the same network in PyTorch's own workflow: eager quantize_dynamic for the linear layers, and
fuse, prepare, calibrate, convert for all of it. Both have the same weights (tinycnn trains and saves them), images,
calibration images and number of threads; measurements take turns.

usage: compare_torch_cnn.py [--tinycnn build/tinycnn] [--threads N] [--turns 5] [--json OUT]
Needs torch, with torch.ao.quantization (2.15.0 still has it) and the x86, fbgemm or onednn engine.
"""
import argparse
import copy
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
import torch.ao.quantization as tq
from torch import nn

warnings.filterwarnings("ignore")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BATCH, CALIBRATION = 64, 256


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(1024, 128), nn.Linear(128, 10)

    def forward(self, x):
        x = self.quant(x)
        x = self.pool(self.relu2(self.conv2(self.relu1(self.conv1(x)))))
        x = self.relu3(self.fc1(torch.flatten(x, 1)))
        return self.dequant(self.fc2(x))


def read_digits(path):
    data = np.fromfile(path, np.uint8).reshape(1797, 65)
    x = torch.from_numpy(data[:, :64].astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    y = torch.from_numpy(data[:, 64].astype(np.int64))
    test = torch.arange(1797) % 5 == 4
    return x[~test], x[test], y[test]


def read_weights(path, net):
    raw = open(path, "rb").read()
    assert raw[:6] == b"TCNN1\n"
    values, at = np.frombuffer(raw, "<f4", offset=6), 0
    for layer, shape in ((net.conv1, (32, 3, 3, 1)), (net.conv2, (64, 3, 3, 32)), (net.fc1, (128, 4, 4, 64)),
                         (net.fc2, (10, 128))):
        n = int(np.prod(shape))
        w = torch.from_numpy(values[at:at + n].reshape(shape).copy())
        if w.dim() == 4:  # NHWC to PyTorch's order of channels, also in the columns of fc1
            w = w.permute(0, 3, 1, 2).contiguous()
        layer.weight.data = w.reshape(layer.weight.shape)
        layer.bias.data = torch.from_numpy(values[at + n:at + n + shape[0]].copy())
        at += n + shape[0]
    assert at == len(values)


def megabytes(net):
    """PyTorch's tutorials measure the saved state_dict."""
    out = io.BytesIO()
    torch.save(net.state_dict(), out)
    return out.tell() / 1e6


def make_static(net, images, engine):
    torch.backends.quantized.engine = engine
    net = copy.deepcopy(net)
    tq.fuse_modules(net, [["conv1", "relu1"], ["conv2", "relu2"], ["fc1", "relu3"]], inplace=True)
    net.qconfig = tq.get_default_qconfig(engine)
    tq.prepare(net, inplace=True)
    for i in range(0, len(images), BATCH):
        net(images[i:i + BATCH])
    return tq.convert(net, inplace=True)


def make_dynamic(net, engine):
    torch.backends.quantized.engine = engine
    return tq.quantize_dynamic(copy.deepcopy(net), {nn.Linear}, dtype=torch.qint8)


def microseconds(net, x, runs):
    for _ in range(runs // 5 + 1):
        net(x)
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        net(x)
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e6


def tinycnn(args, weights, rounds):
    out = subprocess.run([args.tinycnn, "--load", weights, "--json", "--rounds", str(rounds), "--threads", str(args.threads)],
                         check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tinycnn", default=os.path.join(ROOT, "build", "tinycnn"))
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--turns", type=int, default=5)
    p.add_argument("--json")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    train, test, labels = read_digits(os.path.join(ROOT, "examples", "tinycnn", "digits.bin"))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        weights = os.path.join(folder, "weights.bin")
        subprocess.run([args.tinycnn, "--save", weights, "--rounds", "0", "--json"], check=True, stdout=subprocess.DEVNULL)
        net = Net().eval()
        read_weights(weights, net)
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        nets = {"FP32": net, "FP32 channels_last": last}
        for engine in ("x86", "fbgemm", "onednn"):
            if engine in torch.backends.quantized.supported_engines:
                nets["INT8 dynamic " + engine] = make_dynamic(net, engine)
                nets["INT8 static " + engine] = make_static(net, train[:CALIBRATION], engine)
        # The tutorials' ways: scripted and frozen, which takes Python out of the calls.
        for name in list(nets):
            if "static" in name or name == "FP32":
                torch.backends.quantized.engine = name.split()[-1] if "static" in name else "x86"
                nets[name + " jit"] = torch.jit.freeze(torch.jit.trace(nets[name], test[:BATCH]))
        rows = {name: {"us_1": [], "us_64": []} for name in nets}
        ours = []
        for _ in range(args.turns):
            for name, n in nets.items():
                torch.backends.quantized.engine = next((e for e in ("fbgemm", "onednn") if e in name), "x86")
                fmt = torch.channels_last if "channels_last" in name else torch.contiguous_format
                rows[name]["us_1"].append(microseconds(n, test[:1].contiguous(memory_format=fmt), 100))
                rows[name]["us_64"].append(microseconds(n, test[:BATCH].contiguous(memory_format=fmt), 30))
            ours.append(tinycnn(args, weights, 100))
        print(f"torch {torch.__version__}, {args.threads} threads, {args.turns} turns; medians\n")
        print(f"{'':34} {'MB':>8} {'accuracy':>9} {'1 image, us':>12} {'64 images, us':>14}")
        result = []
        for name, n in nets.items():
            right = (n(test).argmax(1) == labels).float().mean().item() * 100
            size = megabytes(nets[name[:-4]] if name.endswith(" jit") else n)
            result.append(("PyTorch " + name, size, right, statistics.median(rows[name]["us_1"]),
                           statistics.median(rows[name]["us_64"])))
        for v in range(3):
            parts = [o["variants"][v] for o in ours]
            result.append(("llmq " + parts[0]["name"], parts[0]["bytes"] / 1e6, parts[0]["accuracy"],
                           statistics.median(x["us_1"] for x in parts), statistics.median(x["us_64"] for x in parts)))
        for r in result:
            print(f"{r[0]:34} {r[1]:8.4f} {r[2]:8.2f}% {r[3]:12.1f} {r[4]:14.0f}")
        best = [min(r[k] for r in result if r[0].startswith("PyTorch INT8 static")) for k in (3, 4)]
        mine = next(r for r in result if r[0] == "llmq INT8 static")
        print(f"\nllmq's static INT8 against PyTorch's fastest: {best[0] / mine[3]:.1f} times faster with 1 image, "
              f"{best[1] / mine[4]:.2f} times with 64")
        if args.json:
            json.dump([dict(zip(("name", "mb", "accuracy", "us_1", "us_64"), r)) for r in result], open(args.json, "w"), indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
