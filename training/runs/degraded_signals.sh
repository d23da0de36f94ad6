#!/usr/bin/env bash
# How far the planning signal can be degraded. For docs/results/degraded_signals.md.
# After an interruption the same command goes on; so it does with more values, such as --noise 0.5 1 2 4 8.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
CHECKPOINT="${CHECKPOINT:-checkpoints/mardini-tiny-carracing}"
CARRACING="${CARRACING:-runs/data/carracing}"
OUT="${OUT:-outputs/results/degraded-signals}"
[ -f "$CARRACING/val/metadata.jsonl" ] || "$PYTHON" -m training.data.recipes.car_racing "$CARRACING/val" --clips 24 --first-seed 100000
"$PYTHON" -m training.reproduction.degraded_signals "$CHECKPOINT" "$CARRACING/val" -o "$OUT" --page docs/results/degraded_signals.md "$@"
cp "$OUT/chart.png" docs/images/results/degraded_signals.png
# Compared with signals dropped: the use that is left.
against=("signals dropped=$OUT:ours, 25 steps, planning signal dropped" "noise, 4 times=$OUT:ours, 25 steps, planning signals with noise 4 times their deviation")
against+=("90% of the tokens dropped=$OUT:ours, 25 steps, 90% of the planning tokens dropped")
for side in 2 4; do against+=("means of ${side}x$side tokens=$OUT:ours, 25 steps, planning signals averaged over ${side}x$side tokens"); done
against+=("planning signals of another window=$OUT:ours, 25 steps, planning signals of another window")
"$PYTHON" -m training.reproduction.comparison "${against[@]}" -o "$OUT" --page docs/results/degraded_signals.md "signals dropped"

