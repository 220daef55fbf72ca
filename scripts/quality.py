#!/usr/bin/env python3
"""How good the files of each method are: perplexity, KL divergence and paired intervals on several texts, beside llama.cpp's.

usage: quality.py MODEL --work DIR --calib TEXT --judge NAME=TEXT[:CHUNKS] [--judge ...] [--tokens 65536]
                  [--ctx 512] [--case METHOD:TYPE[:OPTIONS] ...] [--llmq build/llmq] [--tag WORD] [--llama DIR [--llama-alone]] [--threads N]

MODEL is a Hugging Face folder. METHOD is what llmq knows ("gptq", "rtn", "awq", "awq+gptq", ...), TYPE a GGUF type ("q4_0") or
"gN", "gNsym" or "gNasym" (an HF GPTQ folder of groups of N, with llmq's default, without or with zero points; "awq-gN" an AWQ folder; with
--llama turned to F16 by llama.cpp's converter); OPTIONS more words for llmq, "--bits 2" or "--qat" among them. The methods "imatrix" and "llama.cpp" are llama-quantize with and without an importance matrix from
the same tokens, TYPE one of its own names ("Q4_K_M"); they and the column "llama.cpp" need --llama, a folder with llama-quantize,
llama-imatrix, llama-perplexity and ../convert_hf_to_gguf. The embedding and the head are Q8_0 in every GGUF file (and as they were in a
folder that is judged as it is), except with TYPE "=Q4_K_M": that is llama-quantize's mixture
of that name with an importance matrix as it is, embedding and head too, and for llmq's methods a file in which every tensor has the very type
that it has there (same_types.py), which is checked.
Every step whose result is in DIR is skipped, so an interrupted run goes on; --tag tells the files of one llmq from those of another
(and of one calibration text from another).
Prints a Markdown table. llama.cpp's perplexity is of the first text only. Python's standard library is all that is needed."""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import time

import same_types

def run(command, log=None):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace")
    if log:
        log.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stderr[-1500:]}")
    return done.stdout + done.stderr


class Bench:
    def __init__(self, args):
        self.a, self.work, self.model = args, pathlib.Path(args.work), pathlib.Path(args.model)
        self.work.mkdir(parents=True, exist_ok=True)
        self.stem = self.model.name
        self.seen = f"{args.tokens}x{args.ctx}"  # the calibration, in the names of all that depends on it
        self.judges = []
        for spec in args.judge:
            name, _, rest = spec.partition("=")
            path, _, chunks = rest.partition(":")
            self.judges.append((name, path, int(chunks or 0)))

    def once(self, path, make):
        """Makes path unless it is there, timing it; returns the seconds that it took."""
        clock = path.with_name(path.name + ".seconds")
        if not path.exists():
            start, part = time.time(), path.with_name("part-" + path.name)
            make(part)
            part.rename(path)
            clock.write_text(f"{time.time() - start:.1f}")
        return float(clock.read_text()) if clock.exists() else 0

    def f16(self):
        out = self.work / f"{self.stem}-f16.gguf"
        self.once(out, lambda p: run([self.a.llmq, "convert", self.model, "-o", p, "--type", "f16", "--quiet"]))
        return out

    def imatrix(self):
        out, calib = self.work / f"{self.stem}-{self.seen}.imatrix", self.a.calib
        self.once(out, lambda p: run([f"{self.a.llama}/llama-imatrix", "-m", self.f16(), "-f", calib, "-o", p, "-c", self.a.ctx,
                                      "--chunks", self.a.tokens // self.a.ctx, "-t", self.a.threads]))
        return out

    def like(self, kind):
        """llama.cpp's file of an importance matrix and the mixture kind ("=Q4_K_M")."""
        return self.quantize("imatrix", kind, "")[0]

    def quantize(self, method, kind, options):
        """(file, seconds)"""
        peer = method in ("imatrix", "llama.cpp")
        tag = re.sub(r"[^\w.=]+", "_", "-".join([method, kind, self.seen, *[w for w in (options, not peer and self.a.tag) if w]]))
        out = self.work / f"{self.stem}-{tag}.gguf"
        if peer:
            head = ["--imatrix", self.imatrix()] if method == "imatrix" else []
            if kind[0] != "=":
                head += ["--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0"]
            command = [f"{self.a.llama}/llama-quantize", *head, self.f16()]
            return out, self.once(out, lambda p: run(command + [p, kind.lstrip("="), self.a.threads]))
        words = [f"--{m}" for m in method.split("+")] + options.split()
        common = [self.a.llmq, "quantize", self.model, *words, "--threads", self.a.threads, "--quiet"]
        if method not in ("rtn", "hqq", "nf4", "fp4"):
            common += ["--calib", self.a.calib, "--tokens", self.a.tokens, "--calib-ctx", self.a.ctx]
        if kind[0] == "=":
            policy = self.work / f"{self.stem}-{kind[1:]}.policy"
            policy.write_text(same_types.policy(self.like(kind)))
            seconds = self.once(out, lambda p: run(common + ["--policy", policy, "-o", p, "--force"], out.with_suffix(".log")))
            unlike = same_types.differences(self.like(kind), out)
            if unlike:
                sys.exit(f"{out}: not llama.cpp's types:\n" + "\n".join(unlike))
            return out, seconds
        grid = re.fullmatch(r"(awq-|)g(-?\d+)(sym|asym|)", kind)
        if not grid:
            return out, self.once(out, lambda p: run(common + ["--type", kind, "-o", p, "--force"], out.with_suffix(".log")))
        folder = self.work / f"{self.stem}-{tag}"
        zeros = [f"--{grid[3]}"] if grid[3] else []
        layout = ["--emit", grid[1].rstrip("-") or "gptq", "--group", grid[2]]
        seconds = self.once(folder, lambda p: run(common + layout + zeros + ["-o", p, "--force"]))
        if not self.a.llama:
            return folder, seconds
        self.once(out, lambda p: run([self.a.convert, folder, "--outtype", "f16", "--outfile", p]))
        return out, seconds

    def judge(self, file, text, chunks, name):
        out = file.with_name(f"{file.name}.{name}-{chunks}x{self.a.ctx}.json")
        if not out.exists() or out.stat().st_mtime < file.stat().st_mtime:
            base = [] if file == self.f16() else ["--base", self.f16()]
            out.write_text(run([self.a.llmq, "perplexity", file, "-f", text, "--ctx", self.a.ctx, "--chunks", chunks, *base,
                                "--json", "--quiet", "--threads", self.a.threads]))
        return json.loads(re.search(r"\{.*\}", out.read_text(), re.S)[0])

    def llama_ppl(self, file, text, chunks, name):
        """llama-perplexity's figure. It may end well and lose its last lines on a busy machine: then it is run again."""
        out, figure = file.with_name(f"{file.name}.{name}-{chunks}x{self.a.ctx}.llama"), r"Final estimate: PPL = ([\d.]+)"
        fresh = out.exists() and out.stat().st_mtime >= file.stat().st_mtime
        found = re.search(figure, out.read_text()) if fresh else None
        for _ in range(3):
            if found:
                return float(found[1])
            out.write_text(run([f"{self.a.llama}/llama-perplexity", "-m", file, "-f", text, "-c", self.a.ctx, "--chunks", chunks or -1,
                                "-t", self.a.threads]))
            found = re.search(figure, out.read_text())
        return float(found[1]) if found else float("nan")

    def row(self, label, file, seconds):
        size = sum(f.stat().st_size for f in file.glob("*")) if file.is_dir() else file.stat().st_size
        cells = [label, f"{size / 1e6:.{1 if size >= 1e7 else 2}f}", f"{seconds:.0f}" if seconds else ""]
        for i, (name, text, chunks) in enumerate(self.judges):
            if self.a.llama and i == 0:
                cells.append(f"{self.llama_ppl(file, text, chunks, name):.2f}")
                if self.a.llama_alone:
                    continue
            r = self.judge(file, text, chunks, name)
            cells.append(f"{r['ppl']:.2f}")
            if "base_ppl" in r:
                cells += [f"{r['dppl']:+.2f} ± {r['dppl_ci95']:.2f}", f"{r['kl_mean']:.4f}", f"{100 * r['top1']:.1f}"]
            else:
                cells += [""] * 3
        print("| " + " | ".join(cells) + " |", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--work", required=True)
    ap.add_argument("--calib", required=True)
    ap.add_argument("--judge", action="append", required=True, metavar="NAME=TEXT[:CHUNKS]", help="CHUNKS 0, the default: all")
    ap.add_argument("--case", action="append", default=[], metavar="METHOD:TYPE[:OPTIONS]")
    ap.add_argument("--tokens", type=int, default=65536)
    ap.add_argument("--ctx", type=int, default=512, help="tokens of a window, calibrating and judging (a model's own if it has fewer)")
    ap.add_argument("--llmq", default="build/llmq")
    ap.add_argument("--tag", default="", help="a word in the names of the files that llmq makes")
    ap.add_argument("--llama")
    ap.add_argument("--llama-alone", action="store_true", help="the first text by llama.cpp's perplexity only")
    ap.add_argument("--convert", help="llama.cpp's convert_hf_to_gguf (default: beside --llama)")
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    if args.llama and not args.convert:
        args.convert = str(pathlib.Path(args.llama).parent / "convert_hf_to_gguf")
    bench = Bench(args)
    heads = ["file", "MB", "s"]
    for i, (name, _, chunks) in enumerate(bench.judges):
        if args.llama and i == 0:
            heads.append(f"{name} × {chunks}: llama.cpp's PPL" if args.llama_alone else "llama.cpp's PPL")
            if args.llama_alone:
                continue
        heads += [f"{name}{f' × {chunks}' * bool(chunks)}: PPL", "Δ PPL, 95 %", "KL", "top-1 %"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    bench.row("F16", bench.f16(), 0)
    for case in args.case:
        method, kind, *options = case.split(":", 2)
        file, seconds = bench.quantize(method, kind, options[0] if options else "")
        bench.row(case, file, seconds)


if __name__ == "__main__":
    main()
