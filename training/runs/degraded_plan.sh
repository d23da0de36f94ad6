#!/usr/bin/env bash
# How far the planning signal can be degraded. For docs/results/degraded_plan.md.
# Typed again after an interruption it goes on where it stopped; so it does with more values, such as --noise 0.5 1 2 4 --dropped 0.25 0.5 0.75 0.9 --squares 2 4.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
CHECKPOINT="${CHECKPOINT:-checkpoints/mardini-tiny-carracing}"
CARRACING="${CARRACING:-runs/data/carracing}"
OUT="${OUT:-outputs/results/degraded-plan}"
[ -f "$CARRACING/val/metadata.jsonl" ] || "$PYTHON" -m training.data.car_racing "$CARRACING/val" --clips 24 --first-seed 100000
"$PYTHON" -m training.claims.degraded_plan "$CHECKPOINT" "$CARRACING/val" -o "$OUT" --page docs/results/degraded_plan.md "$@"
cp "$OUT/chart.png" docs/images/results/degraded_plan.png
