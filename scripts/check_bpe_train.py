#!/usr/bin/env python3
"""Compares tokenizers that llmq makes from a text (tokenizer/train.c) with those of Hugging Face's BpeTrainer.

usage: check_bpe_train.py TEXT [--heldout TEXT] [--vocab 8192] [--build build] [--llama-tokenize PATH] [--json F]

Both learn from TEXT, theirs after ByteLevel, and must come to the same vocabulary and the same merges in the same order.
Then texts of many kinds are encoded by transformers' AutoTokenizer from the files that llmq wrote, by `llmq tokenize` from the
GGUF, by `llmq tokenize` from the folder's tokenizer.json, and by llama.cpp's llama-tokenize if it is given: the ids must be equal, and
decoding them by llmq must give back the text. Printed: seconds of processor time, bytes per token on TEXT and on --heldout.

Needs transformers, and the program built by name: cmake --build build --target train_tokenizer."""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

END = "<|endoftext|>"


def run(command, data=None):
    done = subprocess.run([str(c) for c in command], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stderr.decode()[-800:]}")
    return done.stdout


def theirs(text, vocab):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    begin = time.process_time()
    tok.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=2, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tok, time.process_time() - begin


def merges_of(model):
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]


def odd_texts():
    rng = random.Random(1)
    yield from ["", " ", "a", "\n", "\r\n\r\n  \t x", "don't we'll I'M 'S", "1234567 3.14159e-10 \u0661\u0662\u00bd\u2167",
                f"one{END}two {END} three{END}{END}", "<|endoftext|", "    if (x == 0) {\n\t\treturn -1;\n    }\n\n\n",
                "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f \uc548\ub155 \u0417\u0434\u0440\u0430 e\u0301 \u212b \ufb01",
                "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00a0\u2003x\u200b", "a" * 500, "ab" * 300, "-" * 300, " " * 300]
    ranges = [(0x20, 0x7e), (0x9, 0xd), (0xa1, 0x24f), (0x370, 0x52f), (0x5d0, 0x6ff), (0x900, 0x97f), (0x2000, 0x2bff),
              (0x3040, 0x30ff), (0x4e00, 0x9fff), (0x1f300, 0x1faff)]
    for _ in range(150):
        chosen = rng.sample(ranges, 2) + [ranges[0]] * 2
        yield "".join(chr(rng.randint(*rng.choice(chosen))) for _ in range(rng.randint(1, 200)))


def compare_ids(folder, build, text, llama):
    """Number of texts and of tokens; ends the program at the first difference."""
    tok = AutoTokenizer.from_pretrained(folder)
    llmq = os.path.join(build, "llmq")
    gguf = os.path.join(folder, "vocab.gguf")
    from_json = ["--tokenizer", os.path.join(folder, "tokenizer.json")]
    n_texts = n_tokens = 0
    for t in [text] + list(odd_texts()):
        data = t.encode()
        expected = tok.encode(t)
        got = {"llmq, GGUF": json.loads(run([llmq, "tokenize", gguf, "--bos", "--special"], data)),
               "llmq, tokenizer.json": json.loads(run([llmq, "tokenize", gguf, "--bos", "--special"] + from_json, data))}
        if llama and data:
            with tempfile.NamedTemporaryFile() as f:
                f.write(data)
                f.flush()
                got["llama.cpp"] = json.loads(run([llama, "-m", gguf, "-f", f.name, "--ids", "--no-escape", "--log-disable"]))
        for name, ids in got.items():
            if ids != expected:
                at = next((i for i, (a, b) in enumerate(zip(ids, expected)) if a != b), min(len(ids), len(expected)))
                sys.exit(f"{name}: token {at} differs from transformers': {ids[at:at + 5]}, {expected[at:at + 5]} of {t[:200]!r}")
        back = run([llmq, "tokenize", gguf, "--decode", "--special"], json.dumps(expected).encode())
        if back != data:
            sys.exit(f"decoding gives {back[:200]!r}, not {data[:200]!r}")
        n_texts += 1
        n_tokens += len(expected)
    return n_texts, n_tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--heldout")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--build", default="build")
    parser.add_argument("--llama-tokenize")
    parser.add_argument("--json")
    args = parser.parse_args()
    text = open(args.text, newline="").read()
    heldout = open(args.heldout, newline="").read() if args.heldout else None
    with tempfile.TemporaryDirectory() as folder:
        seconds, n = run([os.path.join(args.build, "tests", "train_tokenizer"), args.text, args.vocab, folder]).split()
        ours = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        hf, hf_seconds = theirs(text, args.vocab)
        a, b = json.loads(ours.to_str())["model"], json.loads(hf.to_str())["model"]
        same = {"vocabulary": a["vocab"] == b["vocab"], "merges": merges_of(a) == merges_of(b)}
        out = {"bytes": os.path.getsize(args.text), "vocab": int(n), "vocab_hf": hf.get_vocab_size(), "seconds": float(seconds),
               "seconds_hf": round(hf_seconds, 3), "same": same}
        for name, t in ("text", text), ("heldout", heldout):
            if t:
                out[f"bytes_per_token_{name}"] = {who: round(len(t.encode()) / len(tok.encode(t).ids), 4)
                                                  for who, tok in (("llmq", ours), ("hf", hf))}
        out["texts_equal"], out["tokens_equal"] = compare_ids(folder, args.build, text, args.llama_tokenize)
    for key, value in out.items():
        print(f"{key:24} {value}")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(out, f, indent=1)
    rates = out["bytes_per_token_text"]
    sys.exit(0 if out["vocab"] == out["vocab_hf"] and all(same.values()) and abs(rates["llmq"] / rates["hf"] - 1) < 0.01 else 1)


if __name__ == "__main__":
    main()
