#!/usr/bin/env bash
# Scores both checkpoints at all tasks, for docs/results/checkpoints.md. Needs the extras `train` and `sim`, the networks of docs/evaluation.md, and the laps (training/runs/mardini-tiny-racing.sh):
#   RACING=runs/data/rc_racing bash training/runs/evaluation.sh
# After an interruption the same command goes on; SEEDS=0 first and all of them afterwards costs nothing twice.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
RACING="${RACING:-runs/data/rc_racing}"
CARRACING="${CARRACING:-runs/data/carracing}"
OUT="${OUT:-outputs/results}"
# The best match among the first 500 of the 3,200 training tracks.
[ -f "$CARRACING/train-500/metadata.jsonl" ] || "$PYTHON" -m training.data.recipes.car_racing "$CARRACING/train-500" --clips 500 --first-seed 0
[ -f "$CARRACING/val/metadata.jsonl" ] || "$PYTHON" -m training.data.recipes.car_racing "$CARRACING/val" --clips 24 --first-seed 100000
read -ra SEEDS <<< "${SEEDS:-0 1 2 3}"
score() {  # name of the result, checkpoint, training clips, held-out clips, and further options
    "$PYTHON" -m training.evaluate "checkpoints/$2" "$4" --train-clips "$3" --steps 25 --seeds "${SEEDS[@]}" -o "$OUT/$1" "${@:5}"
}
racing=(mardini-tiny-racing "$RACING/train" "$RACING/val")
carracing=(mardini-tiny-carracing "$CARRACING/train-500" "$CARRACING/val")
score racing-stride-2 "${racing[@]}" --stride 2
score carracing "${carracing[@]}" --stride 2
score racing-stride-3 "${racing[@]}" --stride 3
# Sampled in other ways.
score racing-guidance-2 "${racing[@]}" --stride 2 --guidance-scale 2
score racing-few-steps "${racing[@]}" --stride 2 --guidance-scale 3 --steps 10 5
score racing-few-steps-stride-3 "${racing[@]}" --stride 3 --guidance-scale 3 --steps 10 5
for task in image-to-video expansion; do
    score "racing-$task" "${racing[@]}" --stride 2 --task "$task"
    score "carracing-$task" "${carracing[@]}" --stride 2 --task "$task"
done
