#!/usr/bin/env python3
"""Train a small natural model: Qwen3-shaped, every row divisible by 256, about 8 million weights.

usage: make_natural.py OUT_DIR [--steps 1200] [--threads N] [--text FILE[:REPEATS]]... [--seed 0]

Quantizers flatter themselves on models that were made by rounding or rotating other models. This one is trained from nothing
on real text, in full precision, so its weights and inputs are what training makes them. The text: the Python documentation topics
and the sources of Python's standard library of this machine, data/calibration.txt, and the files of --text, each so
often. The last tenth of each file is held out: OUT_DIR/heldout.txt. OUT_DIR/calib.txt, to calibrate with, is pieces of all the
texts that were trained on, alike much of each, in turn. Windows are of 256 tokens: judge and calibrate with no more (quality.py --ctx
256). Writes an ordinary Hugging Face folder (float16).
Needs: torch transformers tokenizers safetensors. The result depends on the machine's Python; it
is a specimen for comparing methods on one and the same file, not a benchmark of its own."""
import argparse, itertools, math, pathlib, sys, sysconfig, time

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CTX, BATCH, VOCAB = 256, 8, 4096


def texts(extra):
    """(text, repeats) pairs, whole files."""
    import pydoc_data.topics
    yield "\n\n".join(pydoc_data.topics.topics.values()), 2
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(p for p in root.glob("*.py")) + sorted(root.glob("email/*.py")) + sorted(root.glob("asyncio/*.py"))
    yield "\n\n".join(p.read_text(errors="ignore") for p in sources)[:6_000_000], 1
    here = pathlib.Path(__file__).resolve().parent.parent
    yield (here / "data/calibration.txt").read_text(), 3
    for spec in extra:
        name, _, repeats = spec.partition(":")
        yield pathlib.Path(name).read_text(), int(repeats or 1)


def pieces(kept, size=10_000, rounds=12):
    """rounds pieces of every text, evenly over its length, interleaved: readers take a calibration text from its beginning."""
    out = []
    for i in range(rounds):
        for text in kept:
            at = max(0, len(text) - size) * i // (rounds - 1)
            out.append(text[at: at + size])
    return "\n\n".join(out)


def make_tokenizer(corpus):
    tok = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(
        __import__("tokenizers").Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                                       r"\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<|endoftext|>"],
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tok


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--steps", type=int, default=1200)
    ap.add_argument("--threads", type=int, default=0)
    ap.add_argument("--text", action="append", default=[])
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    pairs = list(texts(args.text))
    kept = [(t[: len(t) * 9 // 10], t[len(t) * 9 // 10:], n) for t, n in pairs]
    tok = make_tokenizer([k for k, _, _ in kept])
    ids = torch.tensor(list(itertools.chain.from_iterable(tok.encode(k).ids * n for k, _, n in kept)), dtype=torch.int64)
    print(f"{len(ids)} tokens of training text", flush=True)
    config = Qwen3Config(vocab_size=tok.get_vocab_size(), hidden_size=256, intermediate_size=768, num_hidden_layers=8,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=2048,
                         tie_word_embeddings=True, rope_theta=10000.0, bos_token_id=0, eos_token_id=0)
    model = Qwen3ForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million weights", flush=True)
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    start = time.time()
    for step in range(1, args.steps + 1):
        for group in opt.param_groups:  # a warm-up, then a cosine
            group["lr"] = 2e-3 * min(1, step / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        at = torch.randint(0, len(ids) - CTX - 1, (BATCH,))
        batch = torch.stack([ids[a: a + CTX] for a in at])
        loss = model(input_ids=batch, labels=batch).loss
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        if step % 50 == 0:
            print(f"step {step}  {step * BATCH * CTX} tokens  loss {loss.item():.3f}  {time.time() - start:.0f} s", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out, safe_serialization=True)
    PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|endoftext|>", eos_token="<|endoftext|>",
                            add_bos_token=False, model_max_length=2048).save_pretrained(args.out)
    (args.out / "heldout.txt").write_text("\n\n".join(h[:200_000] for _, h, _ in kept))
    (args.out / "calib.txt").write_text(pieces([k for k, _, _ in kept]))


if __name__ == "__main__":
    sys.exit(main())
