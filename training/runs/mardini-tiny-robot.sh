#!/usr/bin/env bash
# Every command behind docs/results/robot.md and its checkpoint, which is not carried because a cross-fade is better. Needs the extra `train`, and a checkout of DROID's previews:
#   git clone https://github.com/droid-dataset/droid-dataset.github.io && bash training/runs/mardini-tiny-robot.sh droid-dataset.github.io
# After an interruption the same command goes on.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
DATA=runs/data/robot_droid
[ -f $DATA/val/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.droid "${1:?give the folder of a checkout of droid-dataset/droid-dataset.github.io}" $DATA
[ -f runs/autoencoder-robot/config.json ] || "$PYTHON" -m training.train_autoencoder training/configs/autoencoder-robot.yaml
# Two one-thread processes use two cores best; the allocator keeps large tensors instead of returning them (docs/training.md).
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
export MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000
"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" \
    -m training.train_mardini training/configs/tiny-robot.yaml
"$PYTHON" -m training.evaluate runs/tiny-robot/pipeline $DATA/val --train-clips $DATA/train --stride 4 \
    --steps 25 10 5 1 --no-planning --wrong-planning -o outputs/evaluation-robot
"$PYTHON" -m training.evaluate runs/tiny-robot/pipeline $DATA/val --train-clips $DATA/train --stride 4 \
    --task image-to-video --steps 25 -o outputs/evaluation-robot-image-to-video
rows() {  # LABEL=FOLDER:METHOD for each of the rows of an evaluation
    for row in "${@:2}"; do methods+=("$row=$1:$row"); done
}
simple=("copy of the nearest given frame" "best match among training windows" "autoencoder alone (ceiling)")
methods=()
rows outputs/evaluation-robot "ours, 25 steps" "ours, 10 steps" "ours, 5 steps" "ours, 1 step" "ours, 25 steps, planning signal dropped" \
    "ours, 25 steps, planning signals of another window" "cross-fade" "DIS optical flow" "${simple[@]}"
"$PYTHON" -m training.reproduction.comparison "${methods[@]}" -o outputs/evaluation-robot --page docs/results/robot.md interpolation
methods=()
rows outputs/evaluation-robot-image-to-video "ours, 25 steps" "${simple[@]}"
"$PYTHON" -m training.reproduction.comparison "${methods[@]}" -o outputs/evaluation-robot-image-to-video --page docs/results/robot.md image-to-video
"$PYTHON" -m training.reproduction.robot_choices losses runs/tiny-robot task:40 task:440 task:840 task:1240 task:1600 task-2:440 task-2:1040 task-2:1600 \
    --page docs/results/robot.md losses
"$PYTHON" -m training.publish runs/tiny-robot training/runs/mardini-tiny-robot.yaml outputs/evaluation-robot/results.json \
    -o outputs/mardini-tiny-robot
