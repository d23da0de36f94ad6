#!/usr/bin/env bash
# Fig. 6a: quality against the number of DDIM steps, and beside the paper against DPM-Solver++ and UniPC. For docs/results/figure_6a.md.
# After an interruption the same command goes on.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
CHECKPOINT="${CHECKPOINT:-checkpoints/mardini-tiny-carracing}"
CARRACING="${CARRACING:-runs/data/carracing}"
OUT="${OUT:-outputs/results/figure-6a}"
[ -f "$CARRACING/val/metadata.jsonl" ] || "$PYTHON" -m training.data.recipes.car_racing "$CARRACING/val" --clips 24 --first-seed 100000
"$PYTHON" -m training.evaluate "$CHECKPOINT" "$CARRACING/val" --steps 1 2 5 10 25 50 100 -o "$OUT-ddim"
"$PYTHON" -m training.evaluate "$CHECKPOINT" "$CARRACING/val" --steps 1 2 5 10 25 50 100 \
    --scheduler DPMSolverMultistepScheduler UniPCMultistepScheduler -o "$OUT-solvers"
"$PYTHON" -m training.reproduction.figure_6a "$OUT-ddim" "$OUT-solvers" -o docs/images/results/figure_6a.png \
    --page docs/results/figure_6a.md
# Against the paper's choice, window by window: fewer and more steps, then the solvers.
against=("DDIM, 25 steps=$OUT-ddim:ours, 25 steps" "DDIM, 1 step=$OUT-ddim:ours, 1 step")
for steps in 2 5 10 50 100; do against+=("DDIM, $steps steps=$OUT-ddim:ours, $steps steps"); done
for count in "1 step" "2 steps" "5 steps" "10 steps" "25 steps" "50 steps" "100 steps"; do
    against+=("DPM-Solver++, $count=$OUT-solvers:ours, $count, DPMSolverMultistepScheduler")
    against+=("UniPC, $count=$OUT-solvers:ours, $count, UniPCMultistepScheduler")
done
"$PYTHON" -m training.reproduction.comparison "${against[@]}" -o "$OUT" --page docs/results/figure_6a.md "25 steps of DDIM"
