#!/usr/bin/env python3
"""How good the files of each method are: perplexity, KL divergence and paired intervals on several texts, beside llama.cpp's.

usage: quality.py MODEL --work DIR --calib TEXT --judge NAME=TEXT[:CHUNKS] [--judge ...] [--tokens 65536]
                  [--case METHOD:TYPE[:OPTIONS] ...] [--llmq build/llmq] [--llama DIR] [--threads N]

MODEL is a Hugging Face folder. METHOD is what llmq knows ("gptq", "rtn", "awq", "awq+gptq", ...), TYPE a GGUF type ("q4_0") or
"gNsym"/"gNasym" (an HF GPTQ folder of groups of N, turned to F16 by llama.cpp's converter); OPTIONS more words for llmq. The
methods "imatrix" and "llama.cpp" are llama-quantize with and without an importance matrix from the same tokens, TYPE one of
its own names ("Q4_K_M"); they and the column "llama.cpp" need --llama, a folder with llama-quantize, llama-imatrix, llama-perplexity and
../convert_hf_to_gguf. Every step whose result is in DIR is skipped, so an interrupted run goes on. Prints a Markdown table;
the embedding and the head are Q8_0 in every file. Python's standard library is all that is needed."""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import time


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
        self.judges = []
        for spec in args.judge:
            name, _, rest = spec.partition("=")
            path, _, chunks = rest.partition(":")
            self.judges.append((name, path, int(chunks or 40)))

    def once(self, path, make):
        """Makes path unless it is there, timing it; returns the seconds that it took."""
        clock = path.with_name(path.name + ".seconds")
        if not path.exists():
            start = time.time()
            make(path)
            clock.write_text(f"{time.time() - start:.1f}")
        return float(clock.read_text()) if clock.exists() else 0

    def f16(self):
        out = self.work / f"{self.stem}-f16.gguf"
        self.once(out, lambda p: run([self.a.llmq, "convert", self.model, "-o", p, "--type", "f16", "--quiet"]))
        return out

    def imatrix(self):
        out, calib = self.work / f"{self.stem}.imatrix", self.a.calib
        self.once(out, lambda p: run([f"{self.a.llama}/llama-imatrix", "-m", self.f16(), "-f", calib, "-o", p, "-c", "512",
                                      "--chunks", self.a.tokens // 512, "-t", self.a.threads]))
        return out

    def quantize(self, method, kind, options):
        """(file, seconds)"""
        tag = re.sub(r"[^\w.]+", "_", f"{method}-{kind}" + ("-" + options if options else ""))
        out = self.work / f"{self.stem}-{tag}.gguf"
        if method in ("imatrix", "llama.cpp"):
            head = ["--imatrix", self.imatrix()] if method == "imatrix" else []
            command = [f"{self.a.llama}/llama-quantize", *head, "--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0",
                       self.f16()]
            return out, self.once(out, lambda p: run(command + [p, kind, self.a.threads]))
        words = [f"--{m}" for m in method.split("+")] + options.split()
        common = [self.a.llmq, "quantize", self.model, *words, "--threads", self.a.threads, "--quiet"]
        if method not in ("rtn", "hqq", "nf4", "fp4"):
            common += ["--calib", self.a.calib, "--tokens", self.a.tokens]
        grid = re.fullmatch(r"g(-?\d+)(a?)sym", kind)
        if not grid:
            return out, self.once(out, lambda p: run(common + ["--type", kind, "-o", p, "--force"], p.with_suffix(".log")))
        folder = self.work / f"{self.stem}-{tag}"
        seconds = self.once(folder, lambda p: run(common + ["--emit", "gptq", "--group", grid[1], "--asym" if grid[2] else "--sym",
                                                            "-o", p, "--force"]))
        self.once(out, lambda p: run([self.a.convert, folder, "--outtype", "f16", "--outfile", p]))
        return out, seconds

    def judge(self, file, text, chunks, name):
        out = file.with_name(f"{file.name}.{name}.json")
        if not out.exists() or out.stat().st_mtime < file.stat().st_mtime:
            out.write_text(run([self.a.llmq, "perplexity", file, "-f", text, "--ctx", "512", "--chunks", chunks, "--base", self.f16(),
                                "--json", "--quiet", "--threads", self.a.threads]))
        return json.loads(re.search(r"\{.*\}", out.read_text(), re.S)[0])

    def llama_ppl(self, file, text, chunks, name):
        out = file.with_name(f"{file.name}.{name}.llama")
        if not out.exists() or out.stat().st_mtime < file.stat().st_mtime:
            out.write_text(run([f"{self.a.llama}/llama-perplexity", "-m", file, "-f", text, "-c", "512", "--chunks", chunks, "-t",
                                self.a.threads]))
        return float(re.search(r"Final estimate: PPL = ([\d.]+)", out.read_text())[1])

    def row(self, label, file, seconds):
        cells = [label, f"{file.stat().st_size / 1e6:.1f}", f"{seconds:.0f}" if seconds else ""]
        for name, text, chunks in self.judges:
            r = self.judge(file, text, chunks, name)
            if self.a.llama:
                cells.append(f"{self.llama_ppl(file, text, chunks, name):.2f}")
            half = r["dppl_ci95"]
            half = (half[1] - half[0]) / 2 if isinstance(half, list) else half
            cells += [f"{r['ppl']:.2f}", f"{r['dppl']:+.2f} ± {half:.2f}", f"{r['kl_mean']:.4f}", f"{100 * r['top1']:.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--work", required=True)
    ap.add_argument("--calib", required=True)
    ap.add_argument("--judge", action="append", required=True, metavar="NAME=TEXT[:CHUNKS]")
    ap.add_argument("--case", action="append", default=[], metavar="METHOD:TYPE[:OPTIONS]")
    ap.add_argument("--tokens", type=int, default=65536)
    ap.add_argument("--llmq", default="build/llmq")
    ap.add_argument("--llama")
    ap.add_argument("--convert", help="llama.cpp's convert_hf_to_gguf (default: beside --llama)")
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    if args.llama and not args.convert:
        args.convert = str(pathlib.Path(args.llama).parent / "convert_hf_to_gguf")
    bench = Bench(args)
    heads = ["file", "MB", "s"]
    for name, _, chunks in bench.judges:
        heads += [f"{name} × {chunks}: llama.cpp's PPL"] * bool(args.llama) + [f"{name}: PPL", "Δ PPL, 95 %", "KL", "top-1 %"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    bench.row("F16", bench.f16(), 0)
    for case in args.case:
        method, kind, *options = case.split(":", 2)
        file, seconds = bench.quantize(method, kind, options[0] if options else "")
        bench.row(case, file, seconds)


if __name__ == "__main__":
    main()
