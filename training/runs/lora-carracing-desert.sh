#!/usr/bin/env bash
# An adapter that takes the checkpoint of real laps to another domain. Needs the extras `train` and
# `sim`. Typed again after an interruption it goes on where it stopped.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
DATA=runs/data/carracing-desert
[ -f $DATA/train/metadata.jsonl ] || "$PYTHON" -m training.data.car_racing $DATA/train --clips 40 --first-seed 200000 --palette desert
[ -f $DATA/val/metadata.jsonl ] || "$PYTHON" -m training.data.car_racing $DATA/val --clips 12 --first-seed 300000 --palette desert
# Two one-thread processes use two cores best; the allocator keeps large tensors instead of returning them (docs/training.md).
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
export MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000
"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" \
    -m training.train_mardini_lora training/configs/lora-carracing-desert.yaml "$@"
"$PYTHON" -m training.evaluate checkpoints/mardini-tiny-racing $DATA/val --adapter runs/lora-carracing-desert/adapter --train-clips $DATA/train \
    --steps 25 -o outputs/evaluation-lora-carracing-desert
"$PYTHON" -m training.publish runs/lora-carracing-desert training/runs/lora-carracing-desert.yaml \
    outputs/evaluation-lora-carracing-desert/results.json -o outputs/mardini-tiny-racing-lora-carracing-desert
