#!/usr/bin/env bash
# The golden run, in seconds; its curve is runs/golden/metrics.jsonl. Where a change is meant to alter it, copy that to training/runs/golden.jsonl:
#   cp runs/golden/metrics.jsonl training/runs/golden.jsonl
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
[ -f runs/data/shapes/train/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.moving_shapes runs/data/shapes/train --clips 16 --frames 16 --size 32
[ -f runs/data/shapes/val/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.moving_shapes runs/data/shapes/val --clips 4 --frames 16 --size 32 --first-seed 1000
[ -f runs/autoencoder-golden/config.json ] || "$PYTHON" -m training.train_autoencoder training/configs/autoencoder-golden.yaml
"$PYTHON" -m training.train_mardini training/configs/golden.yaml
