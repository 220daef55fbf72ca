#!/usr/bin/env bash
# The recipe of data/tiny: takes the text out of Debian packages (scripts/tiny_text.py), trains the model and tells how it does on the
# text that it never saw. A run that was stopped goes on with the same command.
# usage: scripts/make_tiny.sh [OUT_FOLDER [OPTION...]]   (default models/tiny; options go to llmq train, the last of two decides)
# Needs Debian 12 or kin and lists of packages (apt-get update); nothing is installed. The same bytes come out with the same version
# of llmq, the same instruction set and the same text; the script tells whether the text is that of data/tiny.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-models/tiny}
shift $(($# > 0))
llmq=${LLMQ:-build/llmq}
text=$out.text
text_sha256=6722565aedc22a621edb73711c356810da05210768b49febcae4a8bd2f9757d9

if [ ! -e "$text/valid.txt" ]; then
    mkdir -p "$text/debs"
    python_doc=$(apt-cache depends python3-doc | sed -n 's/.*Depends: \(python3\.[0-9]*-doc\)$/\1/p')
    (cd "$text/debs" && apt-get download -q "${python_doc:-python3.11-doc}" r-cran-janeaustenr dict-devil dict-jargon)
    for deb in "$text"/debs/*.deb; do dpkg-deb -x "$deb" "$text/root"; done
    python3 scripts/tiny_text.py "$text/root" "$text/train.txt" "$text/valid.txt"
fi
echo "$text_sha256  $text/train.txt" | sha256sum --check --status ||
    echo "make_tiny: $text/train.txt is not the text of data/tiny (other versions of the packages): the model will be another"

# Rows of 128: of two models of this size, the deeper and narrower one learned far more in the same time.
"$llmq" train "$text/train.txt" -o "$out" --layers 4 --dim 128 --heads 4 --kv-heads 2 --ff 384 --vocab 2048 --batch 16 --steps 4500 \
    --lr 0.005 --seed 1 "$@"
for judge in "$text/valid.txt" data/heldout.txt; do
    echo "== $judge"
    "$llmq" perplexity "$out" -f "$judge" --ctx 256 --quiet
done
"$llmq" run "$out" -p "It was a delightful visit" -n 80 --temp 0.7 --seed 1 --raw --quiet
