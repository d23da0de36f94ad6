#!/usr/bin/env bash
# Every command behind checkpoints/mardini-tiny-carracing, from nothing but the installed extras `train` and `sim`.
# After an interruption the same command goes on.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
DATA=runs/data/carracing
[ -f $DATA/train/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.car_racing $DATA/train --clips 3200 --first-seed 0
[ -f $DATA/val/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.car_racing $DATA/val --clips 24 --first-seed 100000
[ -f runs/autoencoder-carracing/config.json ] || "$PYTHON" -m training.train_autoencoder training/configs/autoencoder-carracing.yaml
# Two one-thread processes use two cores best; the allocator keeps large tensors instead of returning them (docs/training.md).
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
export MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000
"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" \
    -m training.train_mardini training/configs/tiny-carracing.yaml
"$PYTHON" -m training.evaluate runs/tiny-carracing/pipeline $DATA/val --train-clips $DATA/train \
    --steps 25 10 5 1 --no-planning --wrong-planning -o outputs/evaluation-carracing
"$PYTHON" -m training.publish runs/tiny-carracing training/runs/mardini-tiny-carracing.yaml outputs/evaluation-carracing/results.json \
    --steps 10 --solver UniPCMultistepScheduler -o outputs/mardini-tiny-carracing
