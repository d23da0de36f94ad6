#!/usr/bin/env bash
# How far slow_motion and extend go before quality falls. For docs/results/long_video.md.
# After an interruption the same command goes on; so it does with more clips (--max-clips 8, then without).
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
CHECKPOINT="${CHECKPOINT:-checkpoints/mardini-tiny-carracing}"
CARRACING="${CARRACING:-runs/data/carracing}"
OUT="${OUT:-outputs/results/long-video}"
[ -f "$CARRACING/val/metadata.jsonl" ] || "$PYTHON" -m training.data.recipes.car_racing "$CARRACING/val" --clips 24 --first-seed 100000
"$PYTHON" -m training.reproduction.long_video_quality "$CHECKPOINT" "$CARRACING/val" -o "$OUT" --page docs/results/long_video.md "$@"
for picture in slow_motion_chart=slow_motion extension_chart=extension extension_sheet=extension_sheet far_sheet=far_sheet; do
    cp "$OUT/${picture%%=*}.png" "docs/images/results/long_video_${picture##*=}.png"
done
"$PYTHON" -m training.reproduction.places_between "$CHECKPOINT" "$CARRACING/val" -o "${OUT}-places" --steps 10 --max-clips 12 --page docs/results/long_video.md
