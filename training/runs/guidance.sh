#!/usr/bin/env bash
# How strong guidance on the planning signal should be. For docs/results/guidance.md. Needs the networks of docs/evaluation.md, and for the second half the laps:
#   RACING=runs/data/rc_racing bash training/runs/guidance.sh
# Typed again after an interruption it goes on where it stopped.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
CARRACING="${CARRACING:-runs/data/carracing}"
RACING="${RACING:-}"
OUT="${OUT:-outputs/results/guidance}"
[ -f "$CARRACING/val/metadata.jsonl" ] || "$PYTHON" -m training.data.car_racing "$CARRACING/val" --clips 24 --first-seed 100000
compare() {  # block of the page, checkpoint, held-out clips, task, scales with the pipeline's own first
    local methods=() scale
    for scale in "${@:5}"; do
        "$PYTHON" -m training.evaluate "checkpoints/$2" "$3" --task "$4" --steps 25 --guidance-scale "$scale" -o "$OUT/$1-$scale"
        methods+=("guidance $scale=$OUT/$1-$scale")
    done
    "$PYTHON" -m training.claims.compare "${methods[@]}" -o "$OUT/$1" --page docs/results/guidance.md "$1"
}
clips() {  # name of the checkpoint, held-out clips
    compare "$1-interpolation" "mardini-tiny-$1" "$2" interpolation 1 1.25 1.5 2
    compare "$1-image-to-video" "mardini-tiny-$1" "$2" image-to-video 2.5 1 1.5
}
clips carracing "$CARRACING/val"
if [ -n "$RACING" ]; then clips racing "$RACING/val"; fi
