#!/usr/bin/env bash
# Scores both checkpoints at all tasks, for docs/results/checkpoints.md and README.md. Needs the extras `train` and `sim`, the networks of docs/evaluation.md, and the laps (training/runs/mardini-tiny-racing.sh):
#   RACING=runs/data/rc_racing bash training/runs/evaluation.sh
# Another checkpoint of CarRacing alone, with the pages left alone: CHECKPOINT=runs/mine/pipeline OUT=outputs/mine bash training/runs/evaluation.sh
# After an interruption the same command goes on; SEEDS=0 first and all of them afterwards costs nothing twice.
own=checkpoints/mardini-tiny-carracing results=checkpoints page=docs/results/checkpoints.md
source "$(dirname "$0")/pages.inc.sh"
if [ "$CHECKPOINT" = "$own" ] && [ "$OUT" = "$results" ]; then OUT="$SCORES"; fi
RACING="${RACING:-runs/data/rc_racing}"
# The best match among the first 500 of the 3,200 training tracks.
record "$CARRACING/train-500" 500 0
read -ra SEEDS <<< "${SEEDS:-0 1 2 3}"
score() {  # name of the result, checkpoint, training clips, held-out clips, and further options
    "$PYTHON" -m training.evaluate "$2" "$4" --train-clips "$3" --steps 25 --seeds "${SEEDS[@]}" -o "$OUT/$1" "${@:5}"
}
racing=(checkpoints/mardini-tiny-racing "$RACING/train" "$RACING/val")
carracing=("$CHECKPOINT" "$CARRACING/train-500" "$CARRACING/val")
score carracing "${carracing[@]}" --stride 2
for task in image-to-video expansion; do score "carracing-$task" "${carracing[@]}" --stride 2 --task "$task"; done
if [ "$CHECKPOINT" = "$own" ]; then
    score racing-stride-2 "${racing[@]}" --stride 2
    score racing-stride-3 "${racing[@]}" --stride 3
    # Sampled in other ways.
    score racing-guidance-2 "${racing[@]}" --stride 2 --guidance-scale 2
    score racing-few-steps "${racing[@]}" --stride 2 --guidance-scale 3 --steps 10 5
    score racing-few-steps-stride-3 "${racing[@]}" --stride 3 --guidance-scale 3 --steps 10 5
    for task in image-to-video expansion; do score "racing-$task" "${racing[@]}" --stride 2 --task "$task"; done
fi
filled=()
if [ -n "$PAGE" ]; then filled=("$PAGE"); fi
if [ "$PAGE" = "$page" ]; then filled+=(README.md); fi
if [ -n "$PAGE" ] && [ "$CHECKPOINT" != "$own" ]; then filled+=(--only carracing carracing-image-to-video carracing-expansion); fi
"$PYTHON" -m training.reproduction.released_models "$OUT" ${filled[@]+"${filled[@]}"} \
    --picture "carracing=$PICTURES/carracing.png" "carracing-image-to-video=$PICTURES/carracing-image-to-video.png" "carracing-expansion=$PICTURES/carracing-expansion.png"
