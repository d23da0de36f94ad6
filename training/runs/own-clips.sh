#!/usr/bin/env bash
# Half an hour of training.fit on each of four folders of clips, for docs/results/own-clips.md: give their folder, in which each has a folder `train`.
#   bash training/runs/own-clips.sh clips
# After an interruption the same command goes on.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
clips="${1:?give the folder of the clips}"
fits=()
for name in rc_racing real_clips sim_driving robot_droid; do
    "$PYTHON" -m training.fit "$clips/$name/train" "runs/fits/$name" --hours 0.5 || echo "$name: see its report"  # many kinds of clips are advised against
    fits+=("runs/fits/$name")
done
"$PYTHON" -m training.reproduction.own_clips docs/results/own-clips.md "${fits[@]}"
