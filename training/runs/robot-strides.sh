#!/usr/bin/env bash
# How much moves between neighbouring frames at several paces, for docs/results/robot.md: the simple methods alone count, the checkpoint is there because
# the command asks for one. Needs the clips of training/runs/mardini-tiny-robot.sh and LPIPS (docs/evaluation.md).
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
paces=()
for stride in 2 3 4 6; do
    "$PYTHON" -m training.evaluate checkpoints/mardini-tiny-carracing runs/data/robot_droid/val --stride $stride --steps 1 --metrics lpips \
        -o outputs/robot-strides/$stride
    case $stride in 2) nth=2nd ;; 3) nth=3rd ;; *) nth=${stride}th ;; esac
    paces+=("$nth frame=outputs/robot-strides/$stride")
done
"$PYTHON" -m training.reproduction.robot_choices paces "${paces[@]}" --page docs/results/robot.md paces
