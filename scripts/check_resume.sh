#!/usr/bin/env bash
# Kills a quantization at random moments and lets the same command go on, with 1, 2 and 3 threads in turn: the result must
# have the same SHA-256 as that of a run nobody disturbed. Prints a table; status 0 if all are the same.
# Of a folder it is the sum over its files' names and sums.
# usage: scripts/check_resume.sh MODEL [KILLS [OPTION...]]   (20 kills; options go to llmq quantize: --type q4_0, --emit gptq ...)
# LLMQ: the program (build/llmq). LLMQ_CHECKPOINTS=all takes a checkpoint after every layer, as tests of small models want.
set -u
cd "$(dirname "$0")/.."
model=${1:?usage: scripts/check_resume.sh MODEL [KILLS [OPTION...]]} kills=${2:-20}
shift $(($# < 2 ? $# : 2))
llmq=${LLMQ:-build/llmq}
work=$(mktemp -d "${TMPDIR:-/tmp}/llmq-resume.XXXXXX")
trap 'rm -rf "$work"' EXIT
RANDOM=${SEED:-1}

now() { date +%s.%N; }
seconds() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f", b - a }'; }
quantize() { # quantize THREADS OUT
    "$llmq" quantize "$model" -o "$work/$2" --threads "$1" "${options[@]}" >"$work/log" 2>&1
}
options=("$@")
hash() { # hash OUT
    if [ -d "$work/$1" ]; then
        (cd "$work/$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
    else
        sha256sum <"$work/$1"
    fi
}

begin=$(now)
quantize 1 whole || { cat "$work/log"; exit 1; }
duration=$(seconds "$begin")
wanted=$(hash whole)
echo "$model ${options[*]}: undisturbed, 1 thread: $duration s, SHA-256 ${wanted:0:16}"
printf '%4s  %7s  %8s  %-34s  %8s  %s\n' kill threads after "what it left" "total s" "same bytes"
faults=0 resumed=0
for ((i = 1; i <= kills; i++)); do
    threads=$(((i - 1) % 3 + 1)) begin=$(now) left=
    # Up to three kills of one job; the last run is left alone, with another number of threads than the first.
    for ((k = 0; k <= i % 3; k++)); do
        after=$(awk -v d="$duration" -v r=$RANDOM 'BEGIN { printf "%.3f", d * r / 32768 }')
        "$llmq" quantize "$model" -o "$work/killed" --threads $threads "${options[@]}" >"$work/log" 2>&1 &
        pid=$!
        sleep "$after"
        kill -9 $pid 2>/dev/null
        wait $pid 2>/dev/null
        status=$?
        [ -e "$work/killed" ] && break
        threads=$((threads % 3 + 1))
    done
    if [ -e "$work/killed" ]; then
        left="done before the kill"
        # The journal is removed once the output has its name, unless the kill comes between.
        [ $status -ne 137 ] || rm -f "$work/killed.journal"
    else
        quantize $threads killed || { cat "$work/log"; faults=$((faults + 1)); }
        left=$(sed -n 's/^resumed *//p' "$work/log")
        [ -n "$left" ] && resumed=$((resumed + 1))
        [ -n "$left" ] || left="no checkpoint yet"
    fi
    same=yes
    [ "$(hash killed)" = "$wanted" ] || { same=NO; faults=$((faults + 1)); }
    [ -e "$work/killed.tmp" ] || [ -e "$work/killed.journal" ] && { same="$same, work files left"; faults=$((faults + 1)); }
    printf '%4d  %7d  %8s  %-34s  %8s  %s\n' "$i" "$threads" "$after s" "$left" "$(seconds "$begin")" "$same"
    rm -rf "$work"/killed*
done
echo "$faults of $kills are wrong; $resumed went on from a checkpoint"
[ "$faults" -eq 0 ]
