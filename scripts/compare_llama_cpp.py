#!/usr/bin/env python3
"""llmq beside llama.cpp on the same files, interleaved: A B, B A, ..., so that a machine that drifts drifts for both.

usage: compare_llama_cpp.py MODEL.gguf [MODEL.gguf ...] [--llama DIR] [--llmq build/llmq] [--rounds 5] [--tests speed,depth,...]
                            [-p 512] [-n 64] [--depth 4096] [--batch 8] [--ctx 4096] [--threads N] [--reps 3] [--json F]

tests
  speed   prompt of -p tokens and generation of -n (llmq bench, llama-bench)
  depth   generation of -n tokens after --depth others (the same two)
  batch   generation of -n tokens in each of --batch sequences at once, all sequences counted (llmq bench --batch, llama-batched-bench)
  first   seconds from starting the process to the first token after a short prompt (llmq run, llama-completion), page cache warm
  memory  resident MB of the same two while they generate with a context of --ctx: after the first tokens, and at the peak

Each round runs both programs once on every test; a speed of one round is the median of --reps timed repetitions after a
warm-up. Printed: the median over the rounds of each program, the median of the rounds' own ratios (speeds: llmq / llama.cpp,
seconds and MB: llama.cpp / llmq, so that above 1 is better everywhere) and the lowest and highest round's ratio. DIR is a build
of llama.cpp with llama-bench, llama-batched-bench and llama-completion in it; without it they are looked for in PATH, and a
test whose program is missing is left out with a word. Python's standard library is all that is needed."""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

PROMPT = "Once upon a time there was a little"  # seven or eight tokens in most vocabularies


def output_of(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-800:]}")
    return done.stdout


def bench_rows(command):
    """Runs a bench program that prints a JSON list; {(n_prompt, n_gen, n_depth, n_parallel): median t/s}."""
    return {(r["n_prompt"], r["n_gen"], r["n_depth"], r.get("n_parallel", 1)): statistics.median(r["samples_ts"])
            for r in json.loads(output_of(command))}


def name_of(test):
    prompt, gen, depth, parallel = test
    return (f"pp{prompt}" if prompt else f"tg{gen}") + (f" x{parallel}" if parallel > 1 else "") + (f" @ d{depth}" if depth else "")


def resident(pid, key):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1000
    return 0.0


def first_token(command, skip):
    """Starts a program that writes generated text to stdout after `skip` bytes; (seconds to its first byte, MB then, peak MB)."""
    start = time.perf_counter()
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    seen, seconds, now, peak = 0, None, 0.0, 0.0
    while True:
        chunk = os.read(p.stdout.fileno(), 4096)
        if not chunk:
            break
        seen += len(chunk)
        if seen > skip:
            if seconds is None:
                seconds = time.perf_counter() - start
            try:  # the program may be gone by now
                now, peak = resident(p.pid, "VmRSS") or now, resident(p.pid, "VmHWM") or peak
            except OSError:
                pass
    if p.wait() != 0 or seconds is None:
        sys.exit(f"{' '.join(command)}: status {p.returncode}, {seen} bytes of text")
    return seconds, now, peak


class Comparison:
    def __init__(self, args, model):
        self.a, self.model = args, model

    def peer(self, tool):
        return shutil.which(tool, path=self.a.llama) if self.a.llama else shutil.which(tool)

    def bench(self, mine, **lists):
        a = self.a
        if mine:
            command = [a.llmq, "bench", self.model, "--json", "--quiet", "--depth", str(lists["depth"]), "--batch", str(lists.get("batch", 1))]
        else:
            command = [self.peer("llama-bench"), "-m", self.model, "-o", "json", "-d", str(lists["depth"])]
        return bench_rows(command + ["-p", str(lists["p"]), "-n", str(lists["n"]), "-r", str(lists.get("reps", a.reps)), "-t", str(a.threads)])

    # Each test: the peer's tool, and a function of `mine` that gives {row name: figure}.
    def speed(self, mine):
        return {name_of(t): v for t, v in self.bench(mine, p=self.a.p, n=self.a.n, depth=0).items()}

    def depth(self, mine):
        # llama-bench fills the cache again for every repetition: one is enough to wait for.
        return {name_of(t): v for t, v in self.bench(mine, p=0, n=self.a.n, depth=self.a.depth, reps=1).items()}

    def batch(self, mine):
        a = self.a
        if mine:
            return {name_of(t): v for t, v in self.bench(True, p=0, n=a.n, depth=32, batch=a.batch).items()}
        rows = output_of([self.peer("llama-batched-bench"), "-m", self.model, "-c", str(a.batch * (32 + a.n) + 64), "-npp", "32", "-ntg", str(a.n),
                          "-npl", str(a.batch), "-t", str(a.threads), "-tb", str(a.threads), "--output-format", "jsonl"])
        found = [json.loads(line) for line in rows.splitlines() if line.startswith("{")]
        return {name_of((0, r["tg"], 32, r["pl"])): r["speed_tg"] for r in found}

    def run(self, mine, n):
        a = self.a
        if mine:
            return first_token([a.llmq, "run", self.model, "--raw", "-p", PROMPT, "-n", str(n), "--temp", "0", "--ctx", str(a.ctx), "-q",
                                "-t", str(a.threads)], len(PROMPT))
        return first_token([self.peer("llama-completion"), "-m", self.model, "-p", PROMPT, "-n", str(n), "--temp", "0", "-c", str(a.ctx),
                            "-t", str(a.threads), "-no-cnv", "--no-display-prompt"], 0)

    def first(self, mine):
        return {"start to first token, s": self.run(mine, 2)[0]}

    def memory(self, mine):
        _, now, peak = self.run(mine, 24)
        return {f"resident at ctx {self.a.ctx}, MB": now, "peak resident, MB": peak}


TOOLS = {"speed": "llama-bench", "depth": "llama-bench", "batch": "llama-batched-bench", "first": "llama-completion",
         "memory": "llama-completion"}
LOWER_IS_BETTER = {"first", "memory"}


def compare(model, test, args):
    """Rows of one test: [{test, llmq: [...], llama_cpp: [...], ratios: [...]}]."""
    comparison = Comparison(args, model)
    if not comparison.peer(TOOLS[test]):
        print(f"{test}: left out, {TOOLS[test]} is not in {args.llama or 'PATH'}", file=sys.stderr)
        return []
    if test in LOWER_IS_BETTER:  # into the page cache
        with open(model, "rb") as f:
            while f.read(1 << 24):
                pass
    rounds = []
    for i in range(args.rounds):
        # The order turns around each round, so that neither program always runs on the warmer machine.
        order = (True, False) if i % 2 == 0 else (False, True)
        rounds.append({mine: getattr(comparison, test)(mine) for mine in order})
    rows = []
    for name in rounds[0][True]:
        if not all(name in r[False] and name in r[True] for r in rounds):
            continue
        ours, peers = [r[True][name] for r in rounds], [r[False][name] for r in rounds]
        ratios = [y / x if test in LOWER_IS_BETTER else x / y for x, y in zip(ours, peers)]
        rows.append({"model": os.path.basename(model), "test": name, "llmq": ours, "llama_cpp": peers, "ratios": ratios,
                     "ratio": statistics.median(ratios)})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--llmq", default="build/llmq")
    parser.add_argument("--llama", metavar="DIR", help="folder of llama.cpp's programs")
    parser.add_argument("--tests", default="speed,depth,batch,first,memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("-p", default="512", help="prompt lengths, a list")
    parser.add_argument("-n", type=int, default=64, help="generated tokens")
    parser.add_argument("--depth", type=int, default=4096, help="tokens in the cache before")
    parser.add_argument("--batch", type=int, default=8, help="sequences")
    parser.add_argument("--ctx", type=int, default=4096, help="context of the memory test")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", help="also write all rounds to this file")
    args = parser.parse_args()
    tests = args.tests.split(",")
    unknown = [t for t in tests if t not in TOOLS]
    if unknown:
        sys.exit(f"--tests {unknown[0]}: it takes {', '.join(TOOLS)}")

    log = []
    print("| model | test | llmq | llama.cpp | ratio | spread of the ratio |\n|---|---|--:|--:|--:|---|")
    for model in args.models:
        for test in tests:
            for row in compare(model, test, args):
                ours, peers = statistics.median(row["llmq"]), statistics.median(row["llama_cpp"])
                digits = 3 if ours < 10 else 1
                print(f"| {row['model']} | {row['test']} | {ours:.{digits}f} | {peers:.{digits}f} | {row['ratio']:.2f} | "
                      f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f} |", flush=True)
                log.append(row)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(log, f, indent=1)


if __name__ == "__main__":
    main()
