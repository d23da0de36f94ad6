#!/usr/bin/env bash
# Every command behind checkpoints/mardini-tiny-carracing, from nothing but the installed extras `train` and `sim`.
# After an interruption the same command goes on.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
DATA=runs/data/carracing
DRIVING=runs/data/driving
[ -f $DATA/train/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.car_racing $DATA/train --clips 3200 --first-seed 0
[ -f $DATA/val/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.car_racing $DATA/val --clips 24 --first-seed 100000
[ -f $DRIVING/careful/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.car_racing $DRIVING/careful --clips 500 --first-seed 4000
[ -f $DRIVING/varied/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.car_racing $DRIVING/varied --clips 1500 --drivers varied
[ -f $DATA-varied-val/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.car_racing $DATA-varied-val --clips 40 --first-seed 110000 --drivers varied
[ -f runs/autoencoder-carracing/config.json ] || "$PYTHON" -m training.train_autoencoder training/configs/autoencoder-carracing.yaml
# Two one-thread processes use two cores best; the allocator keeps large tensors instead of returning them (docs/training.md).
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
export MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000
for config in tiny-carracing tiny-driving; do  # the second goes on from the first
    "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" \
        -m training.train_mardini "training/configs/$config.yaml"
done
"$PYTHON" -m training.evaluate runs/tiny-driving/pipeline $DATA/val --train-clips $DRIVING/careful --stride 2 \
    --steps 25 10 5 1 --seeds 0 1 2 3 --no-planning --wrong-planning --no-conditions -o outputs/evaluation-carracing
"$PYTHON" -m training.publish runs/tiny-driving training/runs/mardini-tiny-carracing.yaml outputs/evaluation-carracing/results.json \
    -o outputs/mardini-tiny-carracing
