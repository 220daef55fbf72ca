#!/usr/bin/env bash
# The layers of docs/architecture.md: a room may include only what its line here lists (and itself, and the public
# headers of include/). An arrow that is not here is a fault. usage: scripts/check_layers.sh
set -euo pipefail
cd "$(dirname "$0")/.."

allowed() {
    case $1 in
    include) echo "" ;;
    core) echo "" ;;
    types) echo "core" ;;
    tokenizer) echo "core" ;;
    formats | quant | cpu | cuda) echo "types core" ;;
    report | affine) echo "core" ;;
    engine) echo "report quant tokenizer formats types core" ;;
    train) echo "engine quant tokenizer formats types core" ;;
    api) echo "train engine core" ;; # core: status and memory helpers
    cli | server | examples) echo "" ;;     # clients of the public API, like anyone else
    *) return 1 ;;
    esac
}

faults=0 arrows=0
fault() {
    echo "check_layers: $1" >&2
    faults=$((faults + 1))
}

for room in include core types tokenizer formats quant cpu cuda affine report engine train api cli server examples; do
    [ -d "$room" ] || continue
    while IFS=: read -r file line text; do
        target=${text#*[\"<]}
        target=${target%%[\">]*}
        case $text in
        *\<*) [[ $target == */* && -d ${target%%/*} ]] || continue ;; # the system's, unless it names a room
        esac
        arrows=$((arrows + 1))
        case $target in
        *..*) fault "$file:$line: an include names its room, without .. (\"$target\")" ;;
        llmq*.h) continue ;; # include/
        */*) folder=${target%%/*} ;;
        *) folder=$room ;; # beside the file
        esac
        [ "$folder" = "$room" ] && continue
        case " $(allowed "$room") " in
        *" $folder "*) ;;
        *) fault "$file:$line: $room may not include $folder/ (\"$target\")" ;;
        esac
    done < <(grep -rnE --include='*.[ch]' --include='*.cpp' --include='*.cu' --include='*.cuh' '^[[:space:]]*#[[:space:]]*include[[:space:]]*["<]' "$room" || true)
done

library=(core types tokenizer formats quant cpu cuda affine report engine train api)
code() { # code PATTERN: FILE:LINE of the library's lines that match, comments and strings left out
    local room
    for room in "${library[@]}"; do
        [ -d "$room" ] || continue
        { grep -rnE --include='*.[ch]' "$1" "$room" || true; } |
            { grep -vE '^[^:]+:[0-9]+:[[:space:]]*(\*|/\*|//)' || true; } |
            { grep -vE '"[^"]*(printf|exit)[[:space:]]*\([^"]*"|format\(printf' || true; } | cut -d: -f1,2
    done
}

# Threads are made in core/parallel.c only, and only cli/ prints or leaves.
while IFS= read -r hit; do
    [ "${hit%%:*}" = core/parallel.c ] || fault "$hit: threads outside core/parallel.c"
done < <(code '^[[:space:]]*#[[:space:]]*pragma[[:space:]]+omp|(pthread|thrd)_create[[:space:]]*\(')
while IFS= read -r hit; do
    [ "${hit%%:*}" = core/err.h ] || fault "$hit: only cli/ prints or exits" # core/err.h: LLMQ_ASSERT
done < <(code '(^|[^[:alnum:]_])(v?f?printf|f?puts|f?putc|putchar|exit|_[eE]xit|quick_exit|abort|perror)[[:space:]]*\(')

# Files that have grown past what can be read.
while read -r lines file; do
    [ "$file" = total ] || [ "$lines" -le 1200 ] || fault "$file: $lines lines; a file stops at 1200"
done < <(git ls-files '*.c' '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r wc -l)

[ "$faults" -eq 0 ] || { echo "check_layers: $faults faults in $arrows includes" >&2; exit 1; }
echo "check_layers: $arrows includes, all allowed"
