#!/usr/bin/env bash
# Loads llmq's Hugging Face folders in transformers, GPTQModel, compressed-tensors and bitsandbytes (check_loaders.py), in a
# virtual environment of its own, build-loaders/. Needs the network and about 6 GB; no test of the default set does.
# usage: scripts/check_loaders.sh LLMQ MODEL [options of check_loaders.py]
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
venv=$here/build-loaders
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q torch transformers accelerate compressed-tensors bitsandbytes setuptools wheel
    "$venv/bin/pip" install -q --no-build-isolation gptqmodel
    "$venv/bin/pip" install -q optimum gguf
fi
exec "$venv/bin/python" "$here/scripts/check_loaders.py" "$@"
