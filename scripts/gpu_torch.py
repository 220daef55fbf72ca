#!/usr/bin/env python3
"""The products of tests/cuda/gpu_bench.c in PyTorch, for scripts/gpu_check.sh: f16 weights (cuBLAS), and 4-bit weights in
groups of 128 where this PyTorch has a kernel for them. Weights rotate through as many bytes, launches are recorded in a graph.

usage: gpu_torch.py PRODUCTS.json OUT.json [--device cpu]   (exits 77 without PyTorch or a GPU; cpu: to its end, small, unmeasured)
"""
import argparse
import json
import sys


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("products")
    parser.add_argument("out")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("there is no PyTorch")
        return 77
    gpu = args.device == "cuda"
    if gpu and not torch.cuda.is_available():
        print("PyTorch finds no GPU")
        return 77
    doc = json.load(open(args.products))
    bandwidth = doc["read_gb_per_s"]
    rows, cols = doc["products"][0]["rows"], doc["products"][0]["cols"]
    batches = sorted({p["tokens"] for p in doc["products"]})
    pool = 1 << 29 if gpu else 1 << 16
    results = []
    for name, make in (("f16", dense), ("int4, groups of 128", four_bits)):
        for tokens in batches + [512]:
            row = {"weights": name, "tokens": tokens, "rows": rows, "cols": cols}
            try:
                with torch.inference_mode():
                    call, size = make(torch, args.device, rows, cols, tokens, pool)
                    us = time_calls(torch, call, gpu)
                row["bytes"] = size
                if gpu:
                    row.update(us=us, gb_per_s=size / us * 1e-3, of_read=size / us * 1e-3 / bandwidth if bandwidth else None)
            except (RuntimeError, AttributeError, TypeError, NotImplementedError) as e:
                row["unrun"] = str(e).split("\n")[0][:160]
            results.append(row)
    json.dump({"torch": torch.__version__, "device": args.device, "products": results}, open(args.out, "w"), indent=1)
    print(f"PyTorch {torch.__version__}, {rows} x {cols}\n\n| weights | tokens | us | GB/s | of the read loop |\n|---|--:|--:|--:|--:|")
    for r in results:
        if "us" in r:
            share = f"{100 * r['of_read']:.0f} %" if r["of_read"] else ""
            print(f"| {r['weights']} | {r['tokens']} | {r['us']:.2f} | {r['gb_per_s']:.0f} | {share} |")
        else:
            print(f"| {r['weights']} | {r['tokens']} | unrun | {r.get('unrun', 'not measured on a CPU')} | |")
    if not any("us" in r for r in results):
        print("it ran to its end, and measured nothing")
    return 0


def dense(torch, device, rows, cols, tokens, pool):
    """(a function that multiplies by the k-th matrix, and how many there are), bytes of one"""
    size = rows * cols * 2
    n = pool // size + 1
    w = [torch.randn(rows, cols, device=device, dtype=torch.float16) for _ in range(n)]
    x = torch.randn(tokens, cols, device=device, dtype=torch.float16)
    return (lambda k: torch.nn.functional.linear(x, w[k]), n), size


def four_bits(torch, device, rows, cols, tokens, pool):
    group = 128
    if device != "cuda":
        raise NotImplementedError("its 4-bit kernel is looked for on a GPU only")
    size = rows * cols // 2 + rows * cols // group * 4
    n = pool // size + 1
    packed = []
    for _ in range(n):
        q = torch.randint(0, 256, (rows, cols // 2), device=device, dtype=torch.uint8)
        packed.append(torch.ops.aten._convert_weight_to_int4pack(q, 8))
    scales = torch.ones(cols // group, rows, 2, device=device, dtype=torch.bfloat16)
    x = torch.randn(tokens, cols, device=device, dtype=torch.bfloat16)
    return (lambda k: torch.ops.aten._weight_int4pack_mm(x, packed[k], group, scales), n), size


def time_calls(torch, call, gpu, repeats=10):
    """Microseconds of one product: the median of repeated rounds over all matrices."""
    multiply, n = call
    for k in range(min(n, 3)):
        multiply(k)
    if not gpu:
        return None
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for k in range(n):
            multiply(k)
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / n)
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    sys.exit(main())
