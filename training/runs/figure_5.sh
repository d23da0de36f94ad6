#!/usr/bin/env bash
# Fig. 5: with and without the planning signal, from the same noise. For docs/results/figure_5.md. Needs the networks of docs/evaluation.md, and for the second half the laps:
#   RACING=runs/data/rc_racing bash training/runs/figure_5.sh
# Typed again after an interruption it goes on where it stopped.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
CARRACING="${CARRACING:-runs/data/carracing}"
RACING="${RACING:-}"
OUT="${OUT:-outputs/results/figure-5}"
read -ra SEEDS <<< "${SEEDS:-0}"
[ -f "$CARRACING/val/metadata.jsonl" ] || "$PYTHON" -m training.data.car_racing "$CARRACING/val" --clips 24 --first-seed 100000
compare() {  # name of the result and of its block, checkpoint, held-out clips
    "$PYTHON" -m training.evaluate "checkpoints/$2" "$3" --steps 25 --seeds "${SEEDS[@]}" --no-planning --wrong-planning --sheets 2 -o "$OUT-$1"
    "$PYTHON" -m training.claims.compare "with the plan=$OUT-$1:ours, 25 steps" \
        "planning signal dropped=$OUT-$1:ours, 25 steps, planning signal dropped" \
        "plan of another window=$OUT-$1:ours, 25 steps, plan of another window" "cross-fade=$OUT-$1:cross-fade" \
        "DIS optical flow=$OUT-$1:DIS optical flow" "autoencoder alone (ceiling)=$OUT-$1:autoencoder alone (ceiling)" \
        -o "$OUT-$1" --page docs/results/figure_5.md "$1"
}
compare carracing mardini-tiny-carracing "$CARRACING/val"
if [ -n "$RACING" ]; then compare racing mardini-tiny-racing "$RACING/val"; fi
"$PYTHON" -m training.claims.checkpoints "$(dirname "$OUT")" \
    --picture "$(basename "$OUT")-carracing/planning_0.png=docs/images/results/figure_5.png"
