#!/usr/bin/env python3
"""Loads what `llmq quantize --emit gptq,awq,ct,bnb` writes in the programs it is written for, on the CPU, and compares
the log-probabilities of next tokens and a greedy continuation with llmq's own.

usage: check_loaders.py LLMQ MODEL [--group N] [--emit LIST] [--work DIR] [--json F] [-- more options of llmq quantize]

llmq reads each folder too; its reference is that folder's values in f32 (llmq convert --type f32). gptq and awq are
loaded by GPTQModel's torch kernels, ct and bnb by transformers (compressed-tensors, bitsandbytes). Where these
compute in f16 or bf16 the comparison is only as good as that (TOLERANCE below).
scripts/check_loaders.sh makes the environment."""
import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes longer than the few tokens here
TOKENS = [504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30, 657, 314, 253, 1191, 282, 1215]
# ct in f32, gptq and awq in f16. bitsandbytes multiplies by a bf16 kernel on processors that have it, whatever the model's
# dtype; a ct folder of the same model run in bf16 is 0.24 away from itself in f32.
TOLERANCE = {"gptq": 0.05, "awq": 0.05, "ct": 0.001, "bnb": 0.25}
PACKAGES = ["torch", "transformers", "gptqmodel", "compressed-tensors", "bitsandbytes", "safetensors"]


def run(*command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit status {done.returncode}")
    return done.stdout


def versions():
    out = {}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "absent"
    return out


def load(scheme, folder):
    import torch
    if scheme in ("gptq", "awq"):
        from gptqmodel import BACKEND, GPTQModel
        names = [f"{scheme.upper()}_TORCH", "TORCH"]
        backend = next(BACKEND[n] for n in names if n in BACKEND.__members__)
        return GPTQModel.load(folder, device="cpu", backend=backend, dtype=torch.float16)  # else bf16 on a CPU
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")


def theirs(scheme, folder, tokens, n):
    import torch
    model = load(scheme, folder)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0].float(), -1)
        ids = list(tokens)
        for _ in range(n):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return [float(logprobs[i, tokens[i + 1]]) for i in range(len(tokens) - 1)], ids[len(tokens):]


def ours(llmq, path, tokens, n):
    out = json.loads(run(llmq, "score", path, "--tokens", ",".join(map(str, tokens)), "--greedy", n, "--json"))
    return out["next_logprobs"], out["greedy"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("llmq")
    p.add_argument("model")
    p.add_argument("--group", default="64")
    p.add_argument("--emit", default="gptq,awq,ct,bnb")
    p.add_argument("--greedy", type=int, default=8)
    p.add_argument("--work", help="folder to keep the models in")
    p.add_argument("--json", help="write the figures there")
    argv, more = sys.argv[1:], []
    if "--" in argv:
        at = argv.index("--")
        argv, more = argv[:at], argv[at + 1:]
    args = p.parse_args(argv)
    work = args.work or tempfile.mkdtemp(prefix="llmq-loaders-")
    os.makedirs(work, exist_ok=True)
    rows, failed = [], False
    print("  ".join(f"{k} {v}" for k, v in versions().items()))
    for scheme in args.emit.split(","):
        folder = os.path.join(work, scheme)
        group = [] if scheme == "bnb" else ["--group", args.group]
        run(args.llmq, "quantize", args.model, *(more or ["--rtn"]), "--emit", scheme, *group, "-o", folder, "--force",
            "--quiet")
        reference = os.path.join(work, scheme + "-f32.gguf")
        run(args.llmq, "convert", folder, "--type", "f32", "-o", reference, "--force", "--quiet")
        want, want_greedy = ours(args.llmq, reference, TOKENS, args.greedy)
        row = {"scheme": scheme}
        try:
            got, greedy = theirs(scheme, folder, TOKENS, args.greedy)
            row["max_difference"] = max(abs(a - b) for a, b in zip(want, got))
            row["same_greedy"] = sum(a == b for a, b in zip(want_greedy, greedy))
            row["ok"] = row["max_difference"] <= TOLERANCE[scheme]
        except Exception as e:  # a loader that is absent or refuses is a result, too
            row["error"] = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:300]
            row["ok"] = False
        os.unlink(reference)
        failed |= not row["ok"]
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"model": args.model, "group": args.group, "versions": versions(), "rows": rows}, f, indent=1)
    if not args.work:
        shutil.rmtree(work)
    sys.exit(failed)


main()
