#!/usr/bin/env bash
# The command line as a user meets it: help, bad flags, missing and unwritable files, a full disk, texts, JSON, interrupts.
# usage: test_cli.sh PROGRAM DATA_FOLDER      (ctest calls it so; status 0 passed, 1 failed)
set -u
llmq=$1 data=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/llmq-cli.XXXXXX")
mounted=
cleanup() {
    [ -z "$mounted" ] || umount "$mounted" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT

export LC_ALL=C.UTF-8 NO_COLOR=1
bin=$data/stories260K/stories260K.bin tok=$data/stories260K/tok512.bin
commands=$($llmq --help | sed -n '/^commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')
checks=0 faults=0
out=$work/out err=$work/err

fault() {
    faults=$((faults + 1))
    echo "FAULT: $1"
    sed 's/^/    stderr: /' "$err" | head -n 5
}
skip() { echo "skipped: $1"; }
section() { echo "-- $1"; }

# run STATUS ARGS...: runs llmq (stdin empty unless $input is set) and expects this exit status.
input=/dev/null
run() {
    local want=$1 got
    shift
    checks=$((checks + 1))
    timeout 120 "$llmq" "$@" <"$input" >"$out" 2>"$err"
    got=$?
    [ "$got" -eq "$want" ] || fault "llmq $*: exit status $got instead of $want"
    [ "$got" -eq "$want" ]
}
# The last run's stderr is one line that begins with "llmq: " and holds this word; nothing went to stdout.
says() {
    checks=$((checks + 1))
    [ "$(wc -l <"$err")" -eq 1 ] || { fault "$2: $(wc -l <"$err") lines on stderr instead of one"; return; }
    grep -q '^llmq: ' "$err" || fault "$2: the line does not begin with 'llmq: '"
    grep -qF -- "$1" "$err" || fault "$2: the line does not name '$1'"
    [ ! -s "$out" ] || fault "$2: something on stdout"
}
bad() { # bad WORD ARGS...: usage error that names WORD
    local word=$1
    shift
    run 2 "$@" && says "$word" "llmq $*"
}
fails() { # fails WORD ARGS...: a failed job that names WORD
    local word=$1
    shift
    run 1 "$@" && says "$word" "llmq $*"
}
starts() { # starts WHAT WANTED FILE: the file begins with this text
    checks=$((checks + 1))
    [ "$2" = "$(head -c ${#2} "$3")" ] || { fault "$1"; printf '    wanted: %s\n    got:    %s\n' "$2" "$(cat "$3")"; }
}
same() { # same WHAT WANTED FILE
    checks=$((checks + 1))
    [ "$2" = "$(cat "$3")" ] || { fault "$1"; printf '    wanted: %s\n    got:    %s\n' "$2" "$(cat "$3")"; }
}
json() { # json WHAT PYTHON-EXPRESSION over doc, of the last run's stdout
    checks=$((checks + 1))
    python3 -c 'import json, sys; doc = json.load(open(sys.argv[1])); sys.exit(0 if eval(sys.argv[2]) else 1)' "$out" "$2" 2>"$work/py" ||
        { fault "$1: not true of the JSON: $2"; tail -n 1 "$work/py"; }
}

printf "abcd" >"$work/short.txt"

section "help and version"
[ -n "$commands" ] || fault "no commands in llmq --help"
run 0 --version && grep -q '^llmq [0-9]' "$out" || fault "--version prints no version"
run 0 help
for c in $commands; do
    run 0 "$c" --help && { grep -q "^usage: llmq $c " "$out" || fault "$c --help prints no usage"; }
    [ ! -s "$err" ] || fault "$c --help writes to stderr"
    cp "$out" "$work/help"
    run 0 help "$c" && { cmp -s "$out" "$work/help" || fault "help $c differs from $c --help"; }
    awk -v c="$c" 'length($0) > 110 { bad = 1 } END { exit bad }' "$work/help" || fault "$c --help has lines over 110 columns"
done

section "bad usage"
bad "a command is missing"
bad "did you mean quantize" quantise
bad "--frobnicate" --frobnicate
for c in template serve; do bad "not in this version" $c; done
for c in $commands; do
    bad "--no-such-option" "$c" model.gguf --no-such-option
    if [ "$c" = train ]; then # takes texts
        bad "TEXT is missing" "$c"
    else
        bad "MODEL is missing" "$c"
        bad "too many" "$c" one.gguf two.gguf
    fi
    bad "--tokenizer" "$c" model.gguf --tokenizer
    bad "--threads" "$c" model.gguf --threads none
    case $c in # what these need besides MODEL is asked for first
    perplexity | score | convert) ;;
    run | chat | bench | quantize) fails "cuda" "$c" model.gguf --device cuda:99 ;; # no machine has so many
    *) bad "CPU only" "$c" model.gguf --device cuda:99 ;;
    esac
done
bad "did you mean --temp?" run model.gguf --tmep 1
bad "-n" run model.gguf -n many
bad "--top-p" run model.gguf --top-p 1.5
bad "--ctx" run model.gguf --ctx -5
bad "f16|q8_0|f32" chat model.gguf --kv-type q4_0
bad "--draft" chat model.gguf --draft
for device in tpu cuda: cuda:x cuda:100 cuda:-1 cuda:0x CUDA ""; do bad "cuda:N" run model.gguf -p x --device "$device"; done
bad "--device cuda" run model.gguf -p x --gpu-layers 3
bad "--device cuda" run model.gguf -p x --gpu-layers 3 --device auto
bad "--gpu-layers" run model.gguf -p x --device cuda --gpu-layers -1
bad "leave it out" quantize model.gguf --device cuda --gpu-layers 3
bad "exclude" run model.gguf -p x -f y
bad "--quiet takes no value" run model.gguf --quiet=1
bad "-p" bench model.gguf -p 1,x
bad "nothing to measure" bench model.gguf -p 0 -n 0,0
bad "--batch" bench model.gguf --batch 0
bad "-f TEXT" bench model.gguf --lookup
bad "--batch" bench model.gguf --batch 4097
bad "one sequence" bench model.gguf -f text --batch 2
bad "nothing to guess" bench model.gguf -f text -n 0 --lookup
bad "nothing to measure" bench model.gguf -f text -n 0
bad "-f TEXT" perplexity model.gguf
bad "--tokens" score model.gguf
bad "--tokens" score model.gguf --tokens 1,,2
bad "-o OUT" convert model.gguf
bad "--type" convert model.gguf -o x.gguf --type q9_9
bad "-o OUT" train text.txt
bad "exclude" train text.txt -o x --steps 5 --minutes 1
bad "--layers" train "$data/../../data/heldout.txt" -o "$work/never" --from "$bin" --layers 2
bad "--heads 3" train "$data/../../data/heldout.txt" -o "$work/never" --heads 3
bad "--type q4_0" train "$data/../../data/heldout.txt" -o "$work/never" --type q4_0
bad "has 4 tokens" train "$work/short.txt" -o "$work/never" -q
bad "--tokenizer" train text.txt -o "$work/never" --tokenizer "$tok"
fails "$work/missing.txt" train "$work/missing.txt" -o "$work/never"
bad "f32, f16 or bf16" convert "$bin" --tokenizer "$tok" -o "$work/never" --emit hf --type q8_0
bad "llmq convert --emit hf" quantize "$bin" --tokenizer "$tok" -o "$work/never" --emit hf
bad "engines" inspect "$bin" --for ollama
bad "exclude" quantize model.gguf --gptq --rtn
bad "awq" quantize model.gguf --method awq
bad "--bits 5" quantize model.gguf --bits 5
bad "--type" quantize model.gguf --type nonsense
bad "PATTERN=TYPE" quantize model.gguf --keep q4_0
bad "nonsense" quantize model.gguf --keep 'blk.*=nonsense'
bad "32, 64, 128 or -1" quantize model.gguf --group 48
bad "--shard-size" quantize model.gguf --shard-size 5XB
bad "--max-ram" quantize model.gguf --max-ram 5XB
bad "exclude each other" quantize model.gguf --int8-dynamic --int8-static
bad "--smooth" quantize model.gguf --no-smooth

section "missing and wrong files"
mkdir "$work/empty" && head -c 3000 /dev/urandom >"$work/noise.gguf" && : >"$work/nothing.gguf"
for c in $commands; do
    case $c in
    run) extra="-p x" ;; perplexity) extra="-f $tok" ;; score) extra="--tokens 1" ;; convert) extra="-o $work/never.gguf" ;; *) extra= ;;
    esac
    for model in "$work/missing.gguf" "$work/empty" "$work/noise.gguf" "$work/nothing.gguf"; do
        if [ "$c" = train ]; then
            fails "$model" train "$tok" --from "$model" -o "$work/never.gguf"
            continue
        fi
        # shellcheck disable=SC2086
        fails "$model" "$c" "$model" $extra
    done
done
[ ! -e "$work/never.gguf" ] || fault "convert left an output for a model that cannot be read"
fails "$work/missing.txt" perplexity "$bin" --tokenizer "$tok" -f "$work/missing.txt"
fails "$work/missing.bin" run "$bin" --tokenizer "$work/missing.bin" -p x

# One thread where two prove nothing: on a machine that others use as well, barriers wait for the scheduler.
section "devices"
run 0 run "$bin" --tokenizer "$tok" -p "Once upon a time" -n 20 --temp 0 -t 1 && cp "$out" "$work/text" && cp "$err" "$work/noise"
for device in auto cpu; do
    run 0 run "$bin" --tokenizer "$tok" -p "Once upon a time" -n 20 --temp 0 -t 1 --device $device
    same "--device $device" "$(cat "$work/text")" "$out"
    cmp -s "$err" "$work/noise" || fault "--device $device says something"
done
# Without a GPU, one line says what is missing (a build with CUDA, a driver, a device) and what to do.
if "$llmq" score "$bin" --tokens 1 --device cuda >/dev/null 2>&1; then
    skip "a machine without a GPU: this one has one that llmq can use"
    fails "counted from 0" run "$bin" -p x --device cuda:99
else
    for device in cuda cuda:0 cuda:99; do
        fails "--device cpu" run "$bin" -p x --device $device
        fails "--device cpu" score "$bin" --tokens 1 --device $device --gpu-layers 2
        fails "--device cpu" quantize "$bin" --device $device -o "$work/none.gguf"
    done
    fails "--device cpu" perplexity "$bin" -f "$tok" --device cuda
fi

section "a text, word for word"
story='Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.'
run 0 run "$bin" --tokenizer "$tok" -p "Once upon a time" -n 80 --temp 0 -q
starts "run on the llama2.c file" "$story" "$out"
cp "$out" "$work/story"
run 0 run "$bin" --tokenizer "$tok" -p "Once upon a time" -n 80 --temp 0 -q --threads 1 --kv-type f16
starts "run with one thread" "$story" "$out"
printf 'Once upon a time\n' >"$work/prompt"
input=$work/prompt
run 0 run "$bin" --tokenizer "$tok" -n 80 --temp 0 -q
same "run with the prompt on stdin" "$(cat "$work/story")" "$out"
input=/dev/null
gguf="$work/stories 260K.gguf"
run 0 convert "$bin" --tokenizer "$tok" -o "$gguf" --type f32
run 0 run "$gguf" -p "Once upon a time" -n 80 --temp 0 -q
same "run on the F32 GGUF" "$(cat "$work/story")" "$out"
# A text ends by itself at BOS, as in llama2.c: in the .bin and in the GGUF.
run 0 run "$bin" --tokenizer "$tok" -p "Once upon a time" -n -1 --temp 0 -t 1 && cp "$out" "$work/whole"
grep -q 'context' "$err" && fault "the story of the .bin does not end by itself"
run 0 run "$gguf" -p "Once upon a time" -n -1 --temp 0 -t 1
same "the whole story on the GGUF" "$(cat "$work/whole")" "$out"
run 0 run "$bin" --tokenizer "$tok" -p "Once upon a time" -n 5 --temp 0 --stats
grep -q 'generated 5 tokens' "$err" || fault "--stats does not count 5 tokens"
for seed in 7 8; do
    run 0 run "$gguf" -p "Once" -n 40 --temp 1 --seed $seed -q -t 1 && cp "$out" "$work/seed$seed"
    run 0 run "$gguf" -p "Once" -n 40 --temp 1 --seed $seed -q -t 1
    same "the same seed gives the same text" "$(cat "$work/seed$seed")" "$out"
done
cmp -s "$work/seed7" "$work/seed8" && fault "two seeds gave one text"
run 0 run "$gguf" -p --help -n 2 --temp 0 -q
starts "a prompt that looks like an option" "--help" "$out"
run 0 run "$gguf" -p Once -n 2 --threads $(($(nproc --all) + 5))
grep -q -- "--threads $(($(nproc --all) + 5))" "$err" || fault "more threads than processors: no word about it"
bad "from 0 to 512" run "$gguf" -p Once --threads 513
head -c 4000 "$tok" | tr -c 'a-z' 'a' >"$work/long"
run 1 run "$gguf" -f "$work/long" --ctx 64 -q
grep -q -- '--ctx' "$err" || fault "a prompt longer than the context does not say --ctx"

section "speculation: the same text"
printf 'Lily had a cat and a dog. Lily had a cat and a' >"$work/text" && input=$work/text
for temp in 0 0.9; do
    run 0 run "$gguf" -n 60 --temp $temp --seed 4 -q -t 1 && cp "$out" "$work/plain"
    for how in --lookup "--draft $bin" "--lookup --draft $bin"; do
        # shellcheck disable=SC2086
        run 0 run "$gguf" --tokenizer "$tok" -n 60 --temp $temp --seed 4 --stats -t 1 $how
        same "run $how, temperature $temp" "$(cat "$work/plain")" "$out"
        grep -q 'guessed tokens were right' "$err" || fault "--stats does not tell about guesses ($how)"
    done
done
printf 'Lily had a cat\nLily had a dog\nLily had a cat and\n' >"$work/lines" && input=$work/lines
run 0 chat "$gguf" -n 15 --temp 0.9 --seed 4 -q -t 1 && cp "$out" "$work/plain"
run 0 chat "$gguf" -n 15 --temp 0.9 --seed 4 -q -t 1 --lookup
same "chat --lookup" "$(cat "$work/plain")" "$out"
run 0 chat "$gguf" -n 15 --temp 0.9 --seed 4 -q -t 1 --draft "$gguf"
same "chat --draft" "$(cat "$work/plain")" "$out"
input=/dev/null
bad "vocabulary" run "$gguf" -p Once -n 4 -q --draft "$data/../../data/tiny"
fails "$work/missing.gguf" run "$gguf" -p Once -n 4 -q --draft "$work/missing.gguf"

section "chat"
printf '/help\nOnce upon a time\n\n/nonsense\n/reset\nThere was\n/exit\nnever read\n' >"$work/lines"
input=$work/lines
run 0 chat "$gguf" --temp 0 -n 12
[ "$(wc -l <"$out")" -ge 2 ] || fault "chat answered fewer than two lines"
grep -q 'no chat template' "$err" || fault "chat does not say that the model has no template"
grep -q 'unknown command /nonsense' "$err" || fault "chat does not name an unknown /command"
for _ in $(seq 12); do echo "Once upon a time there was a girl"; done >"$work/lines"
run 0 chat "$gguf" --temp 0 -n 20 --ctx 96 -t 1
grep -q 'oldest' "$err" || fault "chat does not say that old turns are dropped"
cp "$work/long" "$work/lines"
run 0 chat "$gguf" --temp 0 -n 5 --ctx 64 -t 1
grep -q 'shorten it' "$err" || fault "chat does not refuse a message longer than the context"
input=/dev/null
fails "--tokenizer" chat "$bin" # at once, although nothing was typed

section "tokenize"
printf 'Once upon a time' >"$work/text" && input=$work/text
run 0 tokenize "$gguf" --bos && same "ids" "[1, 403, 407, 261, 378]" "$out"
cp "$out" "$work/ids" && input=$work/ids
run 0 tokenize "$gguf" --decode && same "text from ids" "Once upon a time" "$out"
printf '[1, two]' >"$work/ids" && fails "byte 4" tokenize "$gguf" --decode
printf '[1, 999999]' >"$work/ids" && fails "999999" tokenize "$gguf" --decode
input=/dev/null
run 0 tokenize "$gguf" && same "ids of nothing" "[]" "$out"

section "JSON"
run 0 inspect "$gguf" --json --tensors --meta --ctx 256
json inspect "doc['n_layer'] == 5 and doc['n_vocab'] == 512 and doc['ctx'] == 256 and len(doc['tensors']) == doc['n_tensors']"
json "inspect's memory table" "(list(doc['memory']) == ['fp32', 'fp16', 'int8', 'int4', 'int3', 'int2', 'file']
  and [int(doc['n_params'] * b / 8) for b in (32, 16, 8.5, 4.5, 3.4375, 2.625)] == [doc['memory'][k]['weights'] for k in ('fp32', 'fp16', 'int8', 'int4', 'int3', 'int2')]
  and doc['memory']['fp32']['kv'] == 2 * doc['memory']['fp16']['kv'] == 512 * doc['kv_bytes_per_token'] and doc['memory']['file']['weights'] == doc['weight_bytes']
  and all(m['both'] == m['weights'] + m['kv'] for m in doc['memory'].values()))"
run 0 inspect "$gguf" --ctx 256
for line in FP32 FP16 'INT8 (8.5 bits)' '4-bit (4.5 bits)' '3-bit (3.438 bits)' '2-bit (2.625 bits)' 'this file'; do
    grep -qF "$line " "$out" || fault "inspect's memory table has no line '$line'"
done
run 0 inspect "$bin" --tokenizer "$tok"
grep -q 'llama2c' "$out" || fault "inspect does not name the container"
run 1 inspect "$gguf" --for vllm,llama.cpp --json
json "inspect --for" "list(doc['engines']) == ['vllm', 'llama.cpp'] and not doc['ok'] and not doc['engines']['vllm']['ok'] and doc['engines']['vllm']['findings'][0]['refuses']"
run 0 inspect "$gguf" --for llama.cpp
grep -q '^llama.cpp  *loads' "$out" || fault "inspect --for does not give a verdict"
run 0 score "$gguf" --tokens 1,403,407,261,378 --greedy 4 --json
json score "len(doc['next_logprobs']) == 4 and len(doc['last_logits']) == 512 and len(doc['greedy']) == 4 and max(doc['next_logprobs']) <= 0"
run 0 score "$gguf" --tokens 1,403,407
run 2 score "$gguf" --tokens 1,512
run 0 bench "$gguf" -p 16,32 -n 8 -r 2 --depth 0,16 --json -q -t 1
head=$(git -C "$(dirname "$0")" rev-parse -q --verify HEAD 2>/dev/null) # none in a tarball
json "bench and the machine" "all(r['read_bandwidth'] > 1e8 and r['int8_rate'] > 1e8
  and (r['build_commit'] or not '$head') and r['n_batch'] == 512 for r in doc)"
json "shares of the machine" "all((r['bandwidth_share'] is None) == (r['n_gen'] == 0) and r['int8_share'] is None for r in doc)"
json bench "len(doc) == 6 and all(r['avg_ts'] > 0 and len(r['samples_ts']) == 2 for r in doc) and [r['n_depth'] for r in doc] == [0]*3 + [16]*3"
run 0 bench "$gguf" -p 16 -n 0 -r 1 -q --plot "$work/plot.svg"
grep -q '| pp16 |' "$out" || fault "bench prints no table"
grep -q 'read bandwidth measured' "$out" || fault "bench does not tell the read bandwidth"
python3 -c 'import sys, xml.dom.minidom as m; m.parse(sys.argv[1])' "$work/plot.svg" 2>/dev/null || fault "--plot wrote no XML"
grep -q '<rect.*fill="#3b6ea5"' "$work/plot.svg" || fault "--plot of one test drew no bar"
run 0 bench "$gguf" -p 0 -n 4 --batch 1,3 --depth 0,20 -r 2 --json -q -t 1
json "bench --batch" "[(r['n_parallel'], r['n_depth']) for r in doc] == [(1, 0), (3, 0), (1, 20), (3, 20)] and all(abs(r['samples_ts'][0] * r['samples_ns'][0] / 1e9 - 4 * r['n_parallel']) < 0.01 for r in doc)"
printf 'Once upon a time there was a cat. Once upon a time there was a dog. Once upon a time' >"$work/text"
run 0 bench "$gguf" -f "$work/text" -n 24 --lookup --draft "$gguf" -r 2 --json -q -t 1
json "bench -f" "[(r.get('lookup'), r.get('draft'), r['n_gen']) for r in doc] == [(None, None, 24), (True, False, 24), (False, True, 24), (True, True, 24)] and all(r['n_depth'] == doc[0]['n_depth'] > 20 for r in doc)"
json "bench -f counts passes" "all(r['n_passes'] + r['n_accepted'] == 24 and r['n_guessed'] >= r['n_accepted'] for r in doc[1:])"
bad "vocabulary" bench "$gguf" -f "$work/text" -n 4 -q --draft "$data/../../data/tiny"
run 0 bench "$gguf" -p 32,8,16 -n 4 --depth 0,8 -r 1 -q -t 1 --plot "$work/plot.svg"
checks=$((checks + 1))
python3 - "$work/plot.svg" <<'END' || fault "--plot of lists: not the curves that belong there"
import re, sys, xml.dom.minidom
text = open(sys.argv[1]).read()
xml.dom.minidom.parseString(text)
# over prompt lengths: one curve for each depth; over depth: pp32, pp8, pp16, tg4
assert "tokens of the prompt" in text and "tokens in the cache before" in text
assert text.count('<path d="M') - text.count('stroke="#dddddd"') == 2 * 6  # a curve and its line in the legend
assert text.count("<circle") == 2 * 3 + 4 * 2
for name in ("prompt, depth 0", "prompt, depth 8", "pp32", "pp16", "pp8", "tg4"):
    assert f">{name}</text>" in text, name
for path in re.findall(r'<path d="(M[^"]*L[^"]*)" fill="none"', text):
    x = [float(p.split()[0]) for p in re.split("[ML]", path)[1:]]
    assert x == sorted(x) and x[0] < x[-1], path
END
run 0 bench "$gguf" -p 0 -n 4 --batch 1,2,4 -r 1 -q -t 1 --plot "$work/plot.svg"
grep -q '>sequences<' "$work/plot.svg" || fault "--plot draws nothing over the number of sequences"
run 0 bench "$gguf" -p 0 -n 4 -r 1 -q --csv
[ "$(wc -l <"$out")" -eq 2 ] || fault "bench --csv: not two lines"
for _ in $(seq 60); do echo "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."; done >"$work/text"
run 0 perplexity "$gguf" -f "$work/text" --ctx 64 --chunks 4 --json -q -t 1
json perplexity "1 < doc['ppl'] < 20 and doc['chunks'] == 4 and doc['tokens'] > 0 and 'kl_mean' not in doc"
run 0 perplexity "$gguf" -f "$work/text" --ctx 64 --chunks 4 --json -q -t 1 --base "$bin" --stride full
checks=$((checks + 1))

section "quantize"
cp "$bin" "$work/llama.bin" && cp "$tok" "$work/tokenizer.bin"
run 0 quantize "$work/llama.bin" --gptq --bits 4 --tokens 2048 --plan
[ -z "$(find "$work" -name 'llama-*.gguf*')" ] || fault "--plan wrote a file"
grep -q 'blk.0.ffn_down.weight' "$out" || fault "--plan lists no tensors"
grep -q '^needs .* of memory .* of disk, about [0-9.]* s$' "$out" || fault "--plan does not tell memory, disk and time"
run 0 quantize "$work/llama.bin" --gptq --bits 4 --tokens 4096
made=$(sed -n 's/^wrote *//p' "$out")
[ -f "$made" ] || fault "quantize did not say what it wrote"
[ "$(dirname "$made")" = "$work" ] || fault "the output is not beside the source"
[ "$(sed -n 's/^next *//p' "$out")" = "$llmq chat $made" ] || fault "quantize does not print the next command"
for word in size bits error took memory FP32 INT8 2-bit 'this file'; do grep -q "^$word " "$out" || fault "quantize prints no line '$word'"; done
run 0 run "$made" -p "Once upon a time" -n 20 --temp 0 -q
grep -q '^Once upon a time' "$out" || fault "the quantized model does not run"
run 0 perplexity "$made" -f "$work/text" --ctx 64 --chunks 4 --json -q -t 1 --base "$gguf"
json "perplexity with a base" "0 <= doc['kl_mean'] < 1 and 0.3 < doc['top1'] <= 1 and abs(doc['ppl'] - doc['base_ppl'] - doc['dppl']) < 0.05 * doc['ppl']"
run 0 quantize "$work/llama.bin" -t 1 --tokens 1024 --calib "$work/text:3" --calib "$work/text" -o "$work/weights.gguf" -q
before=$(cksum <"$made")
fails "--force" quantize "$work/llama.bin" --rtn -o "$made"
bad "--report" quantize "$work/llama.bin" --rtn --plan --report "$work/same" --report-json "$work/same"
run 0 quantize "$work/llama.bin" -t 1 --target-size 260kB --tokens 512 --calib-ctx 128 --plan -q
[ "$(sed -n 's/^size *\([0-9]*\)\..* kB planned.*/\1/p' "$out")" -le 260 ] || fault "--target-size is not obeyed"
bad "--target-size" quantize "$work/llama.bin" --target-size 1kB --tokens 512 --calib-ctx 128 -q
printf '# a policy\nblk.0.* q8_0\n*ffn_down* nonsense\n' >"$work/policy"
bad "policy:3" quantize "$work/llama.bin" --rtn --policy "$work/policy" --plan
printf '# a policy\nblk.0.* q8_0\n*ffn_up* f16 # all of them\n' >"$work/policy"
run 0 quantize "$work/llama.bin" --rtn --policy "$work/policy" --keep 'blk.0.attn_q*=f16' --plan
grep -q '^blk.0.attn_q.weight .*-> f16' "$out" || fault "--keep does not go before --policy"
grep -q '^blk.0.ffn_up.weight .*-> q8_0' "$out" || fault "the first line of a policy does not decide"
grep -q '^blk.1.ffn_up.weight .*-> f16' "$out" || fault "a later line of a policy is not read"
[ "$before" = "$(cksum <"$made")" ] || fault "a refused job changed the file that was there"
run 0 quantize "$work/llama.bin" -t 1 --rtn -o "$made" --force --report-json "$work/report.json" --report "$work/report.html" -q
grep -q "^</body></html>" "$work/report.html" || fault "--report writes no whole page"
python3 -m json.tool "$work/report.json" >/dev/null || fault "--report-json wrote no JSON"
grep -q '"planned_seconds": [0-9]' "$work/report.json" || fault "--report-json does not tell the planned seconds"
python3 -c 'import json, sys, os
m, tensors = (lambda d: (d["memory"], d["tensors"]))(json.load(open(sys.argv[1])))
weights = sum(t["bytes"] for t in tensors)
assert m["file"]["weights"] == weights and 0 < os.path.getsize(sys.argv[2]) - weights < 30000, (m, weights)
assert m["fp32"]["weights"] > m["fp16"]["weights"] > m["int8"]["weights"] > m["int4"]["weights"] > m["int3"]["weights"] > m["int2"]["weights"] > 0
assert m["fp16"]["kv"] == m["ctx"] * 2 * 2 * 5 * 4 * 8' "$work/report.json" "$made" || fault "--report-json has no memory table of the file"
grep -q '2-bit' "$work/report.html" || fault "--report has no memory table"
grep -q 'planned time' "$work/report.html" || fault "--report does not tell the planned time"
[ -z "$(find "$work" -name '*.tmp')" ] || fault "a .tmp file was left"
fails "--force" convert "$bin" --tokenizer "$tok" -o "$gguf"
fails "$work/missing.txt" quantize "$work/llama.bin" --gptq --calib "$work/missing.txt" -o "$work/never.gguf"

run 0 bench "$made" -p 16 -n 2 -r 1 --json -q -t 1
json "share of 8-bit products" "doc[0]['int8_share'] > 0 and doc[0]['bandwidth_share'] is None and doc[1]['int8_share'] is None and doc[1]['bandwidth_share'] > 0"

section "the model that ships"
tiny=$data/../../data/tiny heldout=$data/../../data/heldout.txt
run 0 inspect "$tiny" --json
json "inspect data/tiny" "doc['n_layer'] == 4 and doc['n_vocab'] == 2048"
for asked in "2: int2-g32-asym" "2:--sym int2-g32-sym" "3: int3-g32-sym" "3:--asym int3-g32-asym"; do
    set -- ${asked#*:} # the option, if any, and the grid
    run 0 quantize "$tiny" --rtn --emit gptq --group 32 --bits "${asked%%:*}" ${2:+"$1"} --plan
    grep -q "^blk.0.ffn_down.weight .*-> ${2:-$1} " "$out" || fault "--bits $asked: another grid"
done
run 0 quantize "$tiny" -t 1 --bits 3 --emit gptq --group 32 --tokens 4096 -o "$work/three" -q
run 0 perplexity "$work/three" -f "$heldout" --ctx 256 --chunks 6 --json -q -t 1 --base "$tiny"
json "3 bits of data/tiny" "doc['base_ppl'] < 35 and 0 < doc['kl_mean'] < 0.2 and 0.7 < doc['top1'] < 1 and doc['ppl'] > doc['base_ppl']"
run 0 run "$work/three" -p "It was a delightful visit" -n 20 --temp 0 -q -t 1
starts "run on 3 bits of data/tiny" "It was a delightful visit" "$out"

run 0 quantize "$tiny" -t 1 --int8-static --tokens 8192 --calib-ctx 64 -o "$work/int8.gguf" --report "$work/int8.html" --report-json "$work/int8.json" -q
grep -q '^ranges  *[0-9.]* % of the layers. multiply-adds' "$out" || fault "--int8-static does not tell what runs in fixed ranges"
grep -q 'class="covered"' "$work/int8.html" || fault "--report draws no ranges"
python3 -c 'import json, sys
inputs = json.load(open(sys.argv[1]))["inputs"]
fixed = sum(i["macs"] for i in inputs if not i["kept"])
assert len(inputs) == 16 and fixed >= 0.95 * sum(i["macs"] for i in inputs) and all(i["low"] < i["high"] for i in inputs)' "$work/int8.json" || fault "--report-json does not tell the ranges"
run 0 inspect "$work/int8.gguf" --json
json "inspect an INT8 model" "doc['activations'] == 'static' and doc['main_type'] == 'q8_0'"
run 0 perplexity "$work/int8.gguf" -f "$heldout" --ctx 256 --chunks 4 --json -q -t 1 --base "$tiny"
json "INT8 of data/tiny" "0 < doc['kl_mean'] < 0.02 and doc['top1'] > 0.9"

section "places that cannot be written"
fails "$work/no/such" convert "$gguf" -o "$work/no/such/folder.gguf"
if [ -w /dev/full ]; then
    checks=$((checks + 1))
    "$llmq" inspect "$gguf" >/dev/full 2>"$err"
    [ $? -eq 1 ] || fault "a full stdout is not an error"
else
    skip "full stdout: no /dev/full"
fi
mkdir "$work/readonly" && chmod 555 "$work/readonly" && chmod 755 "$work"
as_user=()
if [ "$(id -u)" -eq 0 ]; then
    if command -v setpriv >/dev/null && setpriv --reuid=65534 --regid=65534 --clear-groups test -x "$llmq" -a -r "$gguf" 2>/dev/null; then
        as_user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    else
        as_user=(none)
    fi
fi
if [ "${as_user[0]:-}" = none ]; then
    skip "read-only output folder: root may write everywhere, and no other user can read the program"
else
    checks=$((checks + 1))
    ${as_user[@]+"${as_user[@]}"} "$llmq" convert "$gguf" -o "$work/readonly/x.gguf" >"$out" 2>"$err"
    [ $? -eq 1 ] || fault "a read-only folder is not an error"
    says "$work/readonly" "convert into a read-only folder"
fi
mkdir "$work/small"
if [ "$(id -u)" -eq 0 ] && mount -t tmpfs -o size=64k tmpfs "$work/small" 2>/dev/null; then
    mounted=$work/small
    run 1 convert "$gguf" -o "$work/small/x.gguf" && says "$work/small" "convert onto a full disk"
    run 1 quantize "$gguf" --rtn --type q8_0 -o "$work/small/y.gguf"
    checks=$((checks + 1))
    [ -z "$(ls -A "$work/small")" ] || fault "a full disk: something was left: $(ls "$work/small")"
else
    skip "full disk: a tmpfs cannot be mounted here"
fi

section "a terminal"
checks=$((checks + 1))
python3 "$(dirname "$0")/terminal.py" "$llmq" "$gguf" "$work/text" || faults=$((faults + 1))

section "interrupts"
# catches_interrupts PID: waits until llmq has its handler (SIGINT's bit, 2, of the mask of signals caught) or is over;
# false after a minute. The name is asked for since bash, which the process is at first, may have a handler as well.
catches_interrupts() {
    local handled='^Name:.llmq.*SigCgt:.([0-9a-f]+)'
    for _ in $(seq 600); do
        [[ $(cat /proc/$1/status 2>/dev/null) =~ $handled ]] && ((0x${BASH_REMATCH[1]} & 2)) && return 0
        [ -d /proc/$1 ] || return 0
        sleep 0.1
    done
    return 1
}
# Ctrl-C while a long job runs: status 130, no output file left.
interrupted() { # interrupted WHAT ARGS...; stdin from $input
    local what=$1 pid status
    shift
    checks=$((checks + 1))
    "$llmq" "$@" <>"$input" >"$out" 2>"$err" &
    pid=$!
    catches_interrupts $pid || { kill -KILL $pid; wait $pid 2>/dev/null; fault "$what: no handler of SIGINT"; return; }
    sleep 0.5
    kill -INT $pid 2>/dev/null || { wait $pid; fault "$what: over before it could be interrupted"; return; }
    wait $pid
    status=$?
    [ $status -eq 130 ] || fault "$what: exit status $status after Ctrl-C instead of 130"
}
# A background job of a script starts with SIGINT ignored; llmq installs its handler all the same.
mkfifo "$work/fifo" && input=$work/fifo
interrupted "chat that waits for a line" chat "$gguf" -q
interrupted "run that waits for its prompt" run "$gguf" -q
input=/dev/null
interrupted "bench" bench "$gguf" -p 0 -n 400 -r 1000 -q
for _ in $(seq 400); do cat "$work/text"; done >"$work/longtext"
interrupted "perplexity" perplexity "$gguf" -f "$work/longtext" --ctx 64 -q
interrupted "quantize" quantize "$gguf" --gptq --tokens 4000000 --calib "$work/longtext" -o "$work/int.gguf" -q
if grep -q 'the work so far is kept' "$err"; then # where a checkpoint came first
    rm -f "$work"/int.gguf.tmp "$work"/int.gguf.journal
else
    grep -q 'nothing was written' "$err" || fault "an interrupted quantize does not say that nothing was written"
fi
[ -z "$(find "$work" -name 'int.gguf*')" ] || fault "an interrupted quantize left a file"

echo "$checks checks, $faults faults"
[ "$faults" -eq 0 ]
