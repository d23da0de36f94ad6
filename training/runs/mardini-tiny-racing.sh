#!/usr/bin/env bash
# Every command behind checkpoints/mardini-tiny-racing. Needs the extra `train`, and a checkout of the laps:
#   git clone https://github.com/criscola/donkeycar && bash training/runs/mardini-tiny-racing.sh donkeycar
# After an interruption the same command goes on.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
DATA=runs/data/rc_racing
[ -f $DATA/val/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.laps "${1:?give the folder of a checkout of criscola/donkeycar}" $DATA
[ -f runs/autoencoder-racing/config.json ] || "$PYTHON" -m training.train_autoencoder training/configs/autoencoder-racing.yaml
# Two one-thread processes use two cores best; the allocator keeps large tensors instead of returning them (docs/training.md).
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
export MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000
"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" \
    -m training.train_mardini training/configs/tiny-racing.yaml
"$PYTHON" -m training.evaluate runs/tiny-racing/pipeline $DATA/val --train-clips $DATA/train \
    --steps 25 10 5 1 --no-planning --wrong-planning -o outputs/evaluation-racing
"$PYTHON" -m training.publish runs/tiny-racing training/runs/mardini-tiny-racing.yaml outputs/evaluation-racing/results.json \
    --steps 10 --solver UniPCMultistepScheduler --anchors 1 -o outputs/mardini-tiny-racing
