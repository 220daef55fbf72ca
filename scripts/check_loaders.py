#!/usr/bin/env python3
"""Loads what `llmq quantize --emit gptq,awq,ct,bnb` writes in the programs it is written for, on the CPU, and compares
every weight, the log-probabilities of next tokens and a greedy continuation with llmq's own.

usage: check_loaders.py LLMQ MODEL [--group N] [--emit LIST] [--work DIR] [--json F] [-- more options of llmq quantize]

gptq and awq are loaded by GPTQModel (its torch kernels, f16) and by transformers (which needs optimum for gptq and takes kernels of
GPTQModel's for bf16), ct and bnb by transformers. llmq reads each folder, too: its reference is that folder's values in f32 (llmq
convert --type f32).
Of each loaded model:
  weights  every matrix as the program itself dequantizes it, in f32, and every other tensor, beside llmq's: elements that differ.
           None may. bnb's whose rows 64 does not divide are rounded to f16 first: llmq has no blocks for those (docs/formats.md)
  f32      these weights in a plain transformers model, all in f32: the largest difference of log-probabilities from llmq's
  own      the loaded model as it is, whatever its kernels compute in: the same difference, and greedy tokens that agree. f16 and bf16
           bound what it can say: `expected` is the plain model's difference when its matrices and inputs are rounded to that
  generic  bnb, whose kernel on processors with bf16 always computes in that: the loaded model without that kernel, in f32, beside the plain
           model of its weights
--emit also takes int8-dynamic and int8-static: compressed-tensors folders of 8-bit weights whose inputs are quantized, too. Their `own` is
beside llmq's run of the same folder with inputs quantized as the folder says. The two programs' inputs differ in their last bits, so a
few are rounded to the neighbouring integer: `expected` is the most that embeddings which are 1e-6 off cost the loaded model itself, of five tries.
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
PACKAGES = ["torch", "transformers", "gptqmodel", "optimum", "compressed-tensors", "bitsandbytes", "safetensors"]
INT8 = ("int8-dynamic", "int8-static")
LOADERS = {"int8-dynamic": ["transformers"], "int8-static": ["transformers"], "gptq": ["GPTQModel", "transformers"], "awq": ["GPTQModel", "transformers"], "ct": ["transformers"],
           "bnb": ["transformers"]}
F32_LIMIT = 1e-3  # of log-probabilities: two programs that sum the same f32 products in another order
OWN_LIMIT = 2  # times what that precision is expected to cost, and F32_LIMIT more
GGUF_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
GGUF_LAYER_NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
                    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
                    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
                    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


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


def load(scheme, loader, folder, dtype):
    if loader == "GPTQModel":
        from gptqmodel import BACKEND, GPTQModel
        names = [f"{scheme.upper()}_TORCH", "TORCH"]
        backend = next(BACKEND[n] for n in names if n in BACKEND.__members__)
        return GPTQModel.load(folder, device="cpu", backend=backend, dtype=dtype).model.eval()
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu").eval()


def dtypes(scheme, loader):
    """The types to load for weights and for a run, in which nothing stored is rounded and which the kernels want."""
    import torch
    if scheme in ("gptq", "awq"):
        return torch.float16, torch.float16 if loader == "GPTQModel" else torch.bfloat16
    return torch.float32, torch.float32


def dequantized(module):
    """The module's matrix in f32, (outputs, inputs), as the program that loaded it dequantizes it; None: not quantized."""
    import torch
    weight = getattr(module, "weight", None)
    if hasattr(module, "weight_packed") or (hasattr(module, "weight_scale") and weight.dtype == torch.int8):
        from compressed_tensors.compressors import BaseCompressor
        state = {name: p.detach() for name, p in module.named_parameters() if name.startswith("weight")}
        scheme = module.quantization_scheme
        return BaseCompressor.get_value_from_registry(str(scheme.format.value)).decompress(state, scheme)["weight"].float()
    if hasattr(getattr(module, "weight", None), "quant_state"):
        import copy
        from bitsandbytes.functional import dequantize_4bit
        state = copy.copy(module.weight.quant_state)
        state.dtype = torch.float32
        return dequantize_4bit(module.weight.data, state).reshape(state.shape)
    if not hasattr(module, "qweight"):
        return None
    scales = module.scales
    module.scales = scales.float()
    try:
        if hasattr(module, "dequantize_weight"):
            return module.dequantize_weight().T.float().contiguous()
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
        return dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size).T.contiguous()
    finally:
        module.scales = scales


def all_weights(model):
    """{name: f32 tensor} of a loaded model, the names of the quantized matrices, and the classes of these."""
    out, quantized, kinds = {}, [], set()
    for name, module in model.named_modules():
        w = dequantized(module)
        if w is not None:
            out[name + ".weight"] = w
            quantized.append(name)
            kinds.add(type(module).__name__)
    inside = tuple(q + "." for q in quantized)
    for name, p in model.named_parameters():
        if not name.startswith(inside):
            out[name] = p.detach().float()
    return out, quantized, sorted(kinds)


def llmq_weights(gguf):
    """{Hugging Face name: f32 tensor} of a GGUF file of f32; the llama architecture's interleaved rows go back."""
    import gguf as reader
    import torch
    file, out = reader.GGUFReader(gguf), {}
    arch = bytes(file.fields["general.architecture"].parts[-1]).decode()
    heads = {"attn_q": int(file.fields[arch + ".attention.head_count"].parts[-1][0]),
             "attn_k": int(file.fields[arch + ".attention.head_count_kv"].parts[-1][0])}
    for t in file.tensors:
        if t.name == "rope_freqs.weight":
            continue
        assert t.tensor_type.name == "F32", t.name
        w = torch.from_numpy(t.data.copy())
        parts = t.name.split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{GGUF_LAYER_NAMES[parts[2]]}.{parts[3]}"
            if arch == "llama" and parts[2] in heads:
                w = w.reshape(heads[parts[2]], -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
        else:
            name = f"{GGUF_NAMES[parts[0]]}.{parts[1]}"
        out[name] = w
    return out


def as_llmq_has(scheme, w):
    return w.half().float() if scheme == "bnb" and w.ndim == 2 and w.shape[1] % 64 else w


def compare_weights(ours, theirs, scheme):
    import torch
    missing = sorted(set(ours) ^ set(theirs))
    different, largest = 0, 0.0
    for name in set(ours) & set(theirs):
        a, b = ours[name], as_llmq_has(scheme, theirs[name])
        different += int((a != b).sum()) if a.shape == b.shape else a.numel()
        if a.shape == b.shape:
            largest = max(largest, float((a.float() - b.float()).abs().max()))
    return {"weights": sum(w.numel() for w in theirs.values()), "weights_that_differ": different, "largest": largest,
            "unmatched": missing}


def plain_model(folder, weights):
    """A transformers model of nothing but f32 tensors."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"} or ("lm_head.weight" in missing and not config.tie_word_embeddings):
        raise RuntimeError(f"tensors missing {missing} and unexpected {unexpected}")
    return model


def scores(model, tokens, n):
    import torch
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0].float(), -1)
        ids = list(tokens)
        for _ in range(n):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return [float(logprobs[i, tokens[i + 1]]) for i in range(len(tokens) - 1)], ids[len(tokens):]


def rounded_scores(model, quantized, dtype, whole, tokens):
    """The log-probabilities of a plain model computed in dtype: all of it (whole), or its quantized matrices' products."""
    import torch
    if whole:
        return scores(model.to(dtype), tokens, 0)[0]
    for name in quantized:
        module = model.get_submodule(name)
        w = module.weight.to(dtype)
        module.forward = lambda x, w=w: torch.nn.functional.linear(x.to(dtype), w).to(x.dtype)
    return scores(model, tokens, 0)[0]


def generic(model):
    """bitsandbytes' layers made to dequantize to f32 and multiply in that, and what is around them in f32, whatever the folder and
    the processor say."""
    import torch
    for p in model.parameters():
        if p.is_floating_point():
            p.data = p.data.float()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
    return model


def ours(llmq, path, tokens, n):
    out = json.loads(run(llmq, "score", path, "--tokens", ",".join(map(str, tokens)), "--greedy", n, "--json"))
    return out["next_logprobs"], out["greedy"]


def difference(a, b):
    diffs = [abs(x - y) for x, y in zip(a, b)]
    return max(diffs) if all(d == d for d in diffs) else float("inf")


def nudged(model, tokens, got):
    """The largest difference of log-probabilities that embeddings make which are 1e-6 off, in five ways: whether such a nudge tips a
    rounding is chance."""
    import torch
    table = model.get_input_embeddings().weight
    before, largest = table.detach().clone(), 0.0
    for seed in range(5):
        torch.manual_seed(seed)
        with torch.no_grad():
            table.copy_(before * (1 + 1e-6 * torch.randn_like(before)))
        largest = max(largest, difference(got, scores(model, tokens, 0)[0]))
    return largest


def check(llmq, scheme, loader, folder, reference, tokens_in, greedy):
    import torch
    want, want_greedy = ours(llmq, reference, tokens_in, greedy)
    exact_dtype, dtype = dtypes(scheme, loader)
    model = load(scheme, loader, folder, exact_dtype)
    theirs, quantized, kinds = all_weights(model)  # before the first run, which may repack them
    row = {"kernel": ",".join(kinds), "quantized": len(quantized), **compare_weights(llmq_weights(reference), theirs, scheme)}
    if scheme == "bnb":
        from bitsandbytes.functional import has_avx512bf16
        exact = scores(plain_model(folder, theirs), tokens_in, 0)[0]
        row["generic"] = difference(exact, scores(generic(model), tokens_in, 0)[0])
        theirs = {name: as_llmq_has(scheme, w) for name, w in theirs.items()}
    if scheme == "bnb" or dtype != exact_dtype:
        model = load(scheme, loader, folder, dtype)
    got, tokens = scores(model, tokens_in, greedy)
    if scheme in INT8:
        row["expected"] = nudged(model, tokens_in, got)
    if scheme == "bnb":  # the folder's bnb_4bit_compute_dtype, but in the kernel of processors with bf16
        dtype = torch.bfloat16 if has_avx512bf16() else torch.float16
    row["computes_in"] = str(dtype).split(".")[-1]
    whole = next(model.parameters()).dtype == dtype
    del model
    plain = plain_model(folder, theirs)
    row["f32"] = difference(want, scores(plain, tokens_in, 0)[0])
    if scheme in INT8:
        row["rounding_inputs_costs"] = difference(want, got)
        want, want_greedy = ours(llmq, folder, tokens_in, greedy)
    else:
        row["expected"] = difference(want, rounded_scores(plain, quantized, dtype, whole, tokens_in))
    row["own"] = difference(want, got)
    row["same_greedy"] = sum(a == b for a, b in zip(want_greedy, tokens))
    row["ok"] = (not row["weights_that_differ"] and not row["unmatched"] and row["quantized"] > 0
                 and max(row["f32"], row.get("generic", 0)) <= F32_LIMIT
                 and row["own"] <= OWN_LIMIT * row["expected"] + F32_LIMIT)
    return row


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("llmq")
    p.add_argument("model")
    p.add_argument("--group", default="64")
    p.add_argument("--emit", default="gptq,awq,ct,bnb,int8-dynamic,int8-static")
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
    with open(os.path.join(args.model, "config.json")) as f:
        vocab = json.load(f)["vocab_size"]
    tokens = [t % vocab for t in TOKENS]
    print("  ".join(f"{k} {v}" for k, v in versions().items()))
    for scheme in args.emit.split(","):
        folder = os.path.join(work, scheme)
        group = [] if scheme == "bnb" or scheme in INT8 else ["--group", args.group]
        emit = ["--" + scheme, "--emit", "ct"] if scheme in INT8 else ["--emit", scheme]
        run(args.llmq, "quantize", args.model, *(more or ["--rtn"]), *emit, *group, "-o", folder, "--force", "--quiet")
        reference = os.path.join(work, scheme + "-f32.gguf")
        run(args.llmq, "convert", folder, "--type", "f32", "-o", reference, "--force", "--quiet")
        for loader in LOADERS[scheme]:
            row = {"scheme": scheme, "loader": loader}
            try:
                row |= check(args.llmq, scheme, loader, folder, reference, tokens, args.greedy)
            except Exception as e:  # a loader that is absent or refuses is a result, too
                row["error"] = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:300]
                row["ok"] = False
                if os.environ.get("LLMQ_TRACEBACK"):
                    raise
            failed |= not row["ok"]
            rows.append(row)
            print(json.dumps(row), flush=True)
        os.unlink(reference)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"model": args.model, "group": args.group, "options": more or ["--rtn"], "versions": versions(),
                       "rows": rows}, f, indent=1)
    if not args.work:
        shutil.rmtree(work)
    sys.exit(failed)


main()
