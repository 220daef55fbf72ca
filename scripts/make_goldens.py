#!/usr/bin/env python3
"""Make tests/data/goldens: tiny random models, and what transformers computes with them.

usage: make_goldens.py OUT_DIR

Each OUT_DIR/NAME holds config.json and model.safetensors as transformers writes them, and golden.json: the input tokens, the
logits of the last position, the log-probability of every next token, and a greedy continuation, all computed in float32 from
the stored (rounded) weights. Weights are drawn much larger than usual, so that a wrong rotation, norm, bias or scale shows in
the logits at once. Needs: torch, transformers 5, safetensors. Same seeds, same files.
"""
import json
import pathlib
import sys
import warnings

import torch
import transformers

SHAPE = dict(vocab_size=192, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
N_TOKENS, N_GREEDY = 56, 20


def rope(kind=None, theta=10000.0, **more):
    return dict(rope_parameters=dict(rope_type=kind or "default", rope_theta=theta, **more))


# name: config class, what differs from SHAPE, storage type, config.json in the form of transformers 4
MODELS = {
    "llama": ("LlamaConfig", dict(), torch.bfloat16, True),
    "llama-tied": ("LlamaConfig", dict(num_key_value_heads=4, tie_word_embeddings=True), torch.float16, False),
    "llama-bias": ("LlamaConfig", dict(attention_bias=True, head_dim=32), torch.bfloat16, False),
    "llama3": ("LlamaConfig", rope("llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                   original_max_position_embeddings=64), torch.bfloat16, True),
    "linear": ("LlamaConfig", rope("linear", factor=4.0), torch.bfloat16, True),
    "yarn": ("LlamaConfig", rope("yarn", factor=4.0, original_max_position_embeddings=32), torch.bfloat16, False),
    "yarn-factor": ("Qwen2Config", rope("yarn", 1000.0, factor=8.0, attention_factor=0.9, beta_fast=4.0, beta_slow=0.5,
                                        original_max_position_embeddings=32), torch.bfloat16, True),
    "mistral": ("MistralConfig", dict(sliding_window=16, head_dim=32), torch.float16, False),
    "qwen2": ("Qwen2Config", dict(tie_word_embeddings=True), torch.bfloat16, False),
    "qwen3": ("Qwen3Config", dict(head_dim=32), torch.bfloat16, True),
}


def randomize(model):
    for name, p in model.named_parameters():
        if p.dim() > 1:
            p.normal_(0, 1.5 / p.shape[-1] ** 0.5)
        elif "norm" in name:
            p.add_(0.2 * torch.randn_like(p))
        else:
            p.normal_(0, 0.2)


def older_config(path):
    """Rewrites rope_parameters as the rope_theta and rope_scaling of transformers 4."""
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = parameters if parameters["rope_type"] != "default" else None
    path.write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def make(name, out):
    config_class, changes, dtype, older = MODELS[name]
    torch.manual_seed(sum(name.encode()))
    config = getattr(transformers, config_class)(**{**SHAPE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomize(model)
    model.to(dtype).save_pretrained(out / name)
    if older:
        older_config(out / name / "config.json")
    (out / name / "generation_config.json").unlink(missing_ok=True)

    model = transformers.AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = torch.randint(3, config.vocab_size, (1, N_TOKENS), generator=torch.Generator().manual_seed(len(name)))
    tokens[0, 0] = 1
    logits = model(tokens).logits[0]
    logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    text = tokens.clone()
    for _ in range(N_GREEDY):
        text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    golden = dict(tokens=tokens[0].tolist(), last_logits=[round(v, 6) for v in logits[-1].tolist()],
                  next_logprobs=[round(v, 6) for v in logprobs.tolist()], greedy=text[0, N_TOKENS:].tolist())
    (out / name / "golden.json").write_text(json.dumps(golden) + "\n")
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    for name in MODELS:
        make(name, pathlib.Path(sys.argv[1]))


if __name__ == "__main__":
    main()
