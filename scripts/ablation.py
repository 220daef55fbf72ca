#!/usr/bin/env python3
"""What each piece of the GPTQ solver gives: quantizes MODEL with pieces switched by --solver and prints a Markdown table
of layer error, KL against BASE on held-out texts, and seconds. Standard library only.

  scripts/ablation.py build/llmq MODEL BASE.gguf --calib TEXT --judge TEXT --judge TEXT --types q4_0,iq4_nl,q4_1
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

PLAIN = "sweeps=0,refit=0,mean=0"
VARIANTS = [
    ("feedback only, grids first", PLAIN),
    ("weight=pivot", PLAIN + ",weight=pivot"),
    ("grids on corrected weights", PLAIN + ",order=group,grid=corrected"),
    ("mean=2", PLAIN + ",mean=2"),
    ("sweeps", PLAIN + ",sweeps=3"),
    ("refit", PLAIN + ",refit=1"),
    ("sweeps, refit", "mean=0"),
    ("default: sweeps, refit, mean=2", ""),
    ("default with grids on corrected weights", "order=group,grid=corrected"),
]


def run(args):
    return subprocess.run(args, check=True, capture_output=True, text=True).stdout


def measure(opts, quant_type, solver, folder):
    out, report = folder / "q.gguf", folder / "q.json"
    command = [opts.llmq, "quantize", opts.model, "--type", quant_type, "--tokens", str(opts.tokens), "-o", str(out),
               "--report-json", str(report), "--force", "--quiet"]
    command += [x for text in opts.calib for x in ("--calib", text)]
    command += ["--solver", solver] if solver else []
    command += ["--threads", str(opts.threads)] if opts.threads else []
    run(command)
    made = json.loads(report.read_text())
    judge = [opts.llmq, "perplexity", str(out), "--base", opts.base, "--json", "--quiet", "--chunks", str(opts.chunks)]
    kl = [json.loads(run(judge + ["-f", text]))["kl_mean"] for text in opts.judge]
    return made["mean_error"], kl, made["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llmq")
    parser.add_argument("model")
    parser.add_argument("base", help="the model that KL is measured against")
    parser.add_argument("--calib", action="append", default=[])
    parser.add_argument("--judge", action="append", required=True, help="held-out text (repeatable)")
    parser.add_argument("--types", default="q4_0,iq4_nl,q4_1")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0)
    opts = parser.parse_args()
    names = [pathlib.Path(text).name for text in opts.judge]
    print("| type | solver | layer error | " + " | ".join("KL " + n for n in names) + " | seconds |")
    print("|---|---|---|" + "---|" * len(names) + "---|")
    with tempfile.TemporaryDirectory() as folder:
        for quant_type in opts.types.split(","):
            for title, solver in VARIANTS:
                error, kl, seconds = measure(opts, quant_type, solver, pathlib.Path(folder))
                print(f"| {quant_type} | {title} | {error:.6f} | " + " | ".join(f"{x:.5f}" for x in kl) +
                      f" | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
