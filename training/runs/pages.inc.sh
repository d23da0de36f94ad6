# Sourced by the scripts that fill pages of docs/results/: their clips, which page is filled, and a function that compares.
# Before it, a script sets `page`, and `own` and `results` if it measures one checkpoint.
# PAGE: the page to fill, none if empty; PICTURES: where charts go; CARRACING: where the clips are or will be.
# CHECKPOINT=, OUT=: another checkpoint than the page's own, with a folder of its own; the page and its pictures then stay as
# they are, unless PAGE= names one.
# TOY=1 goes through the whole script in minutes, with three clips, two steps a stage and a copy of the page in outputs/toy.
# The pages' tables have LPIPS and FD columns: install their networks first (docs/evaluation.md), or the pages stay as they are.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
TOY="${TOY:-}"
if [ -n "$TOY" ]; then
    CARRACING="${CARRACING:-runs/data/toy}" SCORES="${SCORES:-outputs/toy}"
    if [ -z "${PAGE+set}" ]; then  # the copy has empty blocks
        PAGE="outputs/toy/$(basename "$page")"
        mkdir -p outputs/toy
        sed '/^<!-- .*: begin -->$/,/^<!-- .*: end -->$/{/^<!-- /!d}' "$page" > "$PAGE"
    fi
fi
CARRACING="${CARRACING:-runs/data/carracing}"
SCORES="${SCORES:-outputs/results}"
if [ -n "${own:-}" ]; then
    CHECKPOINT="${CHECKPOINT:-$own}"
    results="$SCORES/$results"
    if [ "$CHECKPOINT" != "$own" ]; then
        results="$results-${CHECKPOINT//\//-}" PAGE="${PAGE:-}"
    fi
    OUT="${OUT:-$results}"
fi
PAGE="${PAGE-$page}"
if [ -z "${PICTURES:-}" ]; then
    PICTURES="${OUT:-$SCORES}-pictures"
    [ "$PAGE" != "$page" ] || PICTURES=docs/images/results
fi

record() {  # folder, number of clips, first seed, and further options; nothing if they are there
    local clips="$2"
    [ -z "$TOY" ] || clips=3
    [ -f "$1/metadata.jsonl" ] || "$PYTHON" -m training.data.recipes.car_racing "$1" --clips "$clips" --first-seed "$3" "${@:4}"
}
fill() {  # a program that takes --page PAGE, with its arguments
    local filled=()
    [ -z "$PAGE" ] || filled=(--page "$PAGE")
    "$PYTHON" -m "$@" ${filled[@]+"${filled[@]}"}
}
fill_block() {  # a block, and a program that takes --page PAGE BLOCK, with its arguments
    local filled=()
    [ -z "$PAGE" ] || filled=(--page "$PAGE" "$1")
    "$PYTHON" -m "${@:2}" ${filled[@]+"${filled[@]}"}
}
compare() {  # a block, the folder of comparison.md, and methods
    fill_block "$1" training.reproduction.comparison "${@:3}" -o "$2"
}
record "$CARRACING/val" 24 100000
