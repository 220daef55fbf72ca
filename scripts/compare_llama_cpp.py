#!/usr/bin/env python3
"""Speed of llmq beside llama.cpp's llama-bench, interleaved: A B A B ..., so that a machine that drifts drifts for both.

usage: compare_llama_cpp.py MODEL.gguf [MODEL.gguf ...] [--llmq build/llmq] [--llama-bench PATH] [--rounds 5] [-p 512] [-n 64]
                            [--depth 0] [--threads N] [--reps 3] [--json F]

Each round runs both programs once on every test, with --reps timed repetitions after a warm-up; a round's figure is the median
of its repetitions. Printed: the median over the rounds of each program, their ratio (median of the rounds' own ratios) and the
spread of that ratio (lowest to highest round). llama-bench comes from a build of llama.cpp (cmake --build ... --target
llama-bench); it is looked for in PATH when --llama-bench is not given. Python's standard library is all that is needed."""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys


def bench(command):
    """Runs a bench program that prints a JSON list; returns {(n_prompt, n_gen, n_depth): median t/s}."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-800:]}")
    rows = json.loads(done.stdout)
    return {(r["n_prompt"], r["n_gen"], r["n_depth"]): statistics.median(r["samples_ts"]) for r in rows}


def name(test):
    prompt, gen, depth = test
    return (f"pp{prompt}" if prompt else f"tg{gen}") + (f" @ d{depth}" if depth else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--llmq", default="build/llmq")
    parser.add_argument("--llama-bench", default=shutil.which("llama-bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("-p", default="512", help="prompt lengths, a list")
    parser.add_argument("-n", default="64", help="generated tokens, a list")
    parser.add_argument("--depth", default="0", help="tokens in the cache before each test, a list")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", help="also write all rounds to this file")
    args = parser.parse_args()
    if not args.llama_bench:
        sys.exit("llama-bench is not in PATH: give --llama-bench PATH")

    log = []
    print("| model | test | llmq t/s | llama.cpp t/s | ratio | spread of the ratio |")
    print("|---|---|--:|--:|--:|---|")
    for model in args.models:
        common = ["-p", args.p, "-n", args.n, "-r", str(args.reps), "-t", str(args.threads)]
        ours_command = [args.llmq, "bench", model, *common, "--depth", args.depth, "--json", "--quiet"]
        peer_command = [args.llama_bench, "-m", model, *common, "-d", args.depth, "-o", "json"]
        ours, peers = [], []
        for i in range(args.rounds):
            # The order turns around each round, so that neither program always runs on the warmer machine.
            for mine in ((True, False) if i % 2 == 0 else (False, True)):
                (ours if mine else peers).append(bench(ours_command if mine else peer_command))
        for test in ours[0]:
            if test not in peers[0]:
                continue
            a, b = [r[test] for r in ours], [r[test] for r in peers]
            ratios = [x / y for x, y in zip(a, b)]
            print(f"| {os.path.basename(model)} | {name(test)} | {statistics.median(a):.1f} | {statistics.median(b):.1f} | "
                  f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |", flush=True)
            log.append({"model": os.path.basename(model), "test": name(test), "llmq": a, "llama_cpp": b, "ratio": statistics.median(ratios)})
    if args.json:
        with open(args.json, "w") as f:
            json.dump(log, f, indent=1)


if __name__ == "__main__":
    main()
