#!/usr/bin/env bash
# A quantization that is killed, interrupted or out of disk, and the same command again.
# usage: test_resume.sh PROGRAM DATA_FOLDER      (ctest calls it so; status 0 passed, 1 failed)
set -u
llmq=$1 data=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/llmq-goes-on.XXXXXX")
mounted=
cleanup() {
    kill -KILL $(jobs -p) 2>/dev/null # one that stands still would stay
    [ -z "$mounted" ] || umount "$mounted" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
export LC_ALL=C.UTF-8 NO_COLOR=1 LLMQ_CHECKPOINTS=all
cp "$data/stories260K/stories260K.bin" "$work/model.bin" && cp "$data/stories260K/tok512.bin" "$work/tokenizer.bin"
faults=0
fault() {
    faults=$((faults + 1))
    echo "FAULT: $1"
    sed 's/^/    /' "$work/log" | tail -n 5
}
quantize() { "$llmq" quantize "$work/model.bin" --type q4_0 --tokens 1024 "$@" >"$work/log" 2>&1; }
says() { grep -q -- "$1" "$work/log" || fault "$2: no '$1'"; }

# stopped SIGNAL OPTION...: starts a job on $work/a.gguf and sends the signal once it has a checkpoint. Status of the job.
# A signal that comes once the output has its name stopped nothing, whatever the status: once more, and without pauses,
# since where files are in memory a job may be over within one.
stopped() {
    local signal=$1 pause=0.005 pid status
    shift
    rm -f "$work/before"
    [ ! -e "$work/a.gguf" ] || cp "$work/a.gguf" "$work/before"
    for _ in $(seq 40); do
        "$llmq" quantize "$work/model.bin" --type q4_0 --tokens 1024 -o "$work/a.gguf" "$@" >"$work/log" 2>&1 &
        pid=$!
        # A slot's head begins with its magic; it is written after the rest of the checkpoint.
        while [ -d /proc/$pid ]; do
            LC_ALL=C grep -qa LLMQSLOT "$work/a.gguf.journal" 2>/dev/null && break
            [ -z "$pause" ] || sleep $pause
        done
        pause=
        kill -"$signal" $pid 2>/dev/null
        wait $pid 2>/dev/null
        status=$?
        if [ $status -ne 0 ]; then
            [ -e "$work/a.gguf" ] || return $status
            [ ! -e "$work/before" ] || ! cmp -s "$work/a.gguf" "$work/before" || return $status
        fi
        # Without options the bytes are known.
        case "$*" in
        "" | --force | "-t "*) [ "$(sha256sum <"$work/a.gguf")" = "$wanted" ] ||
            fault "stopped $*: the job was over, but not with the bytes of an undisturbed run" ;;
        esac
        rm -f "$work"/a.gguf*
        [ ! -e "$work/before" ] || cp "$work/before" "$work/a.gguf"
    done
    fault "stopped $*: the job was over each time"
    return 0
}

quantize -o "$work/whole.gguf" -t 1 || fault "quantize"
wanted=$(sha256sum <"$work/whole.gguf")
same() { # same WHAT FILE
    [ "$(sha256sum <"$2")" = "$wanted" ] || fault "$1: not the bytes of an undisturbed run"
    [ ! -e "$2.tmp" ] && [ ! -e "$2.journal" ] || fault "$1: work files are left"
}
quantize -o "$work/two.gguf" -t 2 && same "two threads" "$work/two.gguf"

echo "-- kill -9, and go on with another number of threads"
stopped KILL -t 2
[ ! -e "$work/a.gguf" ] && [ -e "$work/a.gguf.tmp" ] && [ -e "$work/a.gguf.journal" ] || fault "kill: not what should be left"
quantize -o "$work/a.gguf" -t 1 || fault "going on"
says "going on after layer [1-5] of 5" "going on"
says "^resumed  *after layer" "the summary"
same "kill" "$work/a.gguf"

echo "-- OUT that exists stays as it is until the end"
echo old >"$work/a.gguf"
quantize -o "$work/a.gguf" && fault "OUT was replaced without --force"
stopped KILL --force
[ "$(cat "$work/a.gguf")" = old ] || fault "a killed run changed OUT"
quantize -o "$work/a.gguf" --force && same "--force" "$work/a.gguf"
rm -f "$work/a.gguf"

echo "-- Ctrl-C"
stopped INT -t 1
[ $? -eq 130 ] || fault "Ctrl-C: not status 130"
says "interrupted: the work so far is kept" "Ctrl-C"
command=$(tail -n 1 "$work/log")
bash -c "$command" >"$work/log" 2>&1 || fault "the command that Ctrl-C prints"
says "going on after layer" "the command that Ctrl-C prints"
same "Ctrl-C" "$work/a.gguf"
rm -f "$work/a.gguf"

echo "-- starting anew"
stopped KILL
quantize -o "$work/a.gguf" --no-resume && same "--no-resume" "$work/a.gguf"
! grep -q "going on" "$work/log" || fault "--no-resume went on"
rm -f "$work/a.gguf"
stopped KILL
quantize -o "$work/a.gguf" --damp 0.03 || fault "other settings"
says 'another damp ("default", now 0.03.*); starting anew' "other settings"
rm -f "$work/a.gguf"
stopped KILL
printf 'x' | dd of="$work/model.bin" bs=1 seek=300000 conv=notrunc 2>/dev/null # the model is not what it was
quantize -o "$work/a.gguf" || fault "a changed model"
says 'another source .*starting anew' "a changed model"
rm -f "$work/a.gguf"
cp "$data/stories260K/stories260K.bin" "$work/model.bin"
stopped KILL
rm "$work/a.gguf.tmp"
quantize -o "$work/a.gguf" && same "a lost OUT.tmp" "$work/a.gguf"
rm -f "$work/a.gguf"
stopped KILL
head -c 3000 /dev/urandom | dd of="$work/a.gguf.tmp" bs=1 conv=notrunc 2>/dev/null # its header
quantize -o "$work/a.gguf" && same "a damaged OUT.tmp" "$work/a.gguf"
says "starting anew" "a damaged OUT.tmp"
rm -f "$work/a.gguf"

echo "-- two at once"
for _ in $(seq 40); do
    "$llmq" quantize "$work/model.bin" --type q4_0 --tokens 3072 -o "$work/a.gguf" >/dev/null 2>&1 &
    pid=$!
    while [ -d /proc/$pid ] && [ ! -e "$work/a.gguf.tmp" ]; do sleep 0.005; done
    # Held there while the second one tries, once it is seen to stand still: it would soon be over.
    kill -STOP $pid 2>/dev/null
    while grep -qs '^State:.[^TZ]' /proc/$pid/status; do sleep 0.005; done
    [ -e "$work/a.gguf.tmp" ] && break
    kill -CONT $pid 2>/dev/null # it was over before: once more
    wait $pid
    rm -f "$work"/a.gguf*
done
quantize -o "$work/a.gguf" && fault "two runs on one output"
says "another llmq is at work" "two runs on one output"
kill -CONT $pid
wait $pid || fault "the first of two runs"
rm -f "$work"/a.gguf*

echo "-- methods without data, and AWQ"
for method in --rtn --awq; do
    quantize -o "$work/b.gguf" $method || fault "$method"
    stopped KILL $method
    quantize -o "$work/a.gguf" $method || fault "$method going on"
    cmp -s "$work/a.gguf" "$work/b.gguf" || fault "$method: not the bytes of an undisturbed run"
    rm -f "$work"/[ab].gguf*
done

echo "-- tuning block by block"
tune=(--rtn --tune --tune-set blocks=1,steps=8,batch=1,held=2 --calib-ctx 64 -v)
quantize -o "$work/b.gguf" "${tune[@]}" -t 1 || fault "tuning block by block"
# killed_in LAYER: once that layer is trained, and maybe stored; false if the job was over before.
killed_in() {
    local pid
    "$llmq" quantize "$work/model.bin" --type q4_0 --tokens 1024 -o "$work/a.gguf" "${tune[@]}" -t 1 >"$work/log" 2>&1 &
    pid=$!
    for _ in $(seq 2000); do
        grep -qa "tuning: layer $1:" "$work/log" && break
        [ -d /proc/$pid ] || break
        sleep 0.01
    done
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
    [ ! -e "$work/a.gguf" ]
}
for layer in 1 2 3; do
    for _ in $(seq 10); do
        killed_in $layer && break
        rm -f "$work"/a.gguf*
    done
    [ -e "$work/a.gguf.tmp" ] && [ -e "$work/a.gguf.journal" ] || fault "tuning, kill in layer $layer: not what should be left"
    quantize -o "$work/a.gguf" "${tune[@]}" -t 1 || fault "tuning, going on in layer $layer"
    [ $layer -eq 1 ] || says "going on with tuning after layer" "tuning, going on in layer $layer"
    cmp -s "$work/a.gguf" "$work/b.gguf" || fault "tuning, kill in layer $layer: not the bytes of an undisturbed run"
    rm -f "$work"/a.gguf*
done
rm -f "$work"/b.gguf*

echo "-- --max-ram"
plan() { "$llmq" quantize "$work/model.bin" --type q4_0 --tokens 1024 --plan "$@" 2>&1; }
bytes() { sed -n 's/^needs  *\([0-9.]*\) MB of memory.*/\1/p'; }
least=$(plan --max-ram 1M | sed -n 's/.*; \([0-9.]*\) MB is the least.*/\1/p')
most=$(plan | bytes)
awk -v a="$least" -v b="$most" 'BEGIN { exit !(a > 1 && a < b) }' || fault "--max-ram: least '$least', without it '$most'"
# A job may begin with some stacks more than the process that planned it (both plan with 1.3 MB for such things): 0.4 MB.
quantize -o "$work/b.gguf" --tokens 8192 # two chunks of the default size
least=$(plan --tokens 8192 --max-ram 1M | sed -n 's/.*; \([0-9.]*\) MB is the least.*/\1/p')
quantize -o "$work/a.gguf" --tokens 8192 --max-ram "$(awk -v a="$least" 'BEGIN { print a + 0.4 }')MB" || fault "--max-ram"
cmp -s "$work/a.gguf" "$work/b.gguf" || fault "--max-ram changes the result"
rm -f "$work"/[ab].gguf*

# memory WHAT OPTION...: a job takes the memory that was planned, and the least that --max-ram allows is enough.
memory() {
    local what=$1 taken planned least
    shift
    "$llmq" quantize "$work/model.bin" "$@" -o "$work/b.gguf" >"$work/log" 2>&1 || fault "$what"
    read -r taken planned < <(sed -n 's/^took .*peak memory \([0-9.]*\) MB .* s and \([0-9.]*\) MB were planned.*/\1 \2/p' "$work/log")
    # AddressSanitizer keeps what is freed.
    grep -qa __asan_init "$llmq" || awk -v a="$taken" -v b="$planned" 'BEGIN { exit !(a > 1 && a < 1.2 * b && b < 1.2 * a) }' ||
        fault "$what: '$taken' MB taken, '$planned' MB planned"
    least=$("$llmq" quantize "$work/model.bin" "$@" --plan --max-ram 1M 2>&1 | sed -n 's/.*; \([0-9.]*\) MB is the least.*/\1/p')
    "$llmq" quantize "$work/model.bin" "$@" -o "$work/a.gguf" --max-ram "$(awk -v a="$least" 'BEGIN { print a + 0.4 }')MB" \
        >"$work/log" 2>&1 || fault "$what: --max-ram of the least, $least MB"
    cmp -s "$work/a.gguf" "$work/b.gguf" || fault "$what: --max-ram changes the result"
    taken=$(sed -n 's/^took .*peak memory \([0-9.]*\) MB .*/\1/p' "$work/log")
    grep -qa __asan_init "$llmq" || awk -v a="$taken" -v b="$least" 'BEGIN { exit !(a > 1 && a <= b + 0.4) }' ||
        fault "$what: '$taken' MB taken with --max-ram $least MB"
    rm -f "$work"/[ab].gguf*
}
memory "GPTQ" --gptq --type q4_0 --tokens 4096 -t 1
memory "AWQ" --awq --type q4_0 --tokens 4096 -t 2
memory "AWQ before GPTQ" --awq --gptq --type q4_0 --tokens 4096 --calib-ctx 128 -t 1
memory "--calib self" --calib self --type q4_0 --tokens 512 -t 1
memory "tuning block by block" --tune --tune-set blocks=1,steps=2,batch=1,held=1 --type q4_0 --tokens 4096 --calib-ctx 64 -t 1
memory "--target-size" --target-size 260kB --tokens 1024 --calib-ctx 128 -t 2

mkdir "$work/small"
if [ "$(id -u)" -eq 0 ] && mount -t tmpfs -o size=300k tmpfs "$work/small" 2>/dev/null; then
    echo "-- a full disk"
    mounted=$work/small
    quantize -o "$work/small/a.gguf" && fault "a disk that is too small"
    says "the disk has" "a disk that is too small"
    [ -z "$(ls -A "$work/small")" ] || fault "a disk that is too small: files are left"
fi

echo "-- ten random kills of a run that writes a folder, 3 bits"
LLMQ=$llmq "$(dirname "$0")/../../scripts/check_resume.sh" "$data/../../data/tiny" 10 --tokens 512 --emit gptq --bits 3 --group 32 ||
    faults=$((faults + 1))
echo "$faults faults"
[ "$faults" -eq 0 ]
