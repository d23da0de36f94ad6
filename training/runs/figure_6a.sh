#!/usr/bin/env bash
# Fig. 6a: quality against the number of DDIM steps, and beside the paper against DPM-Solver++ and UniPC. For docs/results/figure_6a.md.
# Another checkpoint, with the page left alone: CHECKPOINT=runs/mine/pipeline OUT=outputs/mine bash training/runs/figure_6a.sh
# After an interruption the same command goes on.
own=checkpoints/mardini-tiny-carracing results=figure-6a page=docs/results/figure_6a.md
source "$(dirname "$0")/pages.inc.sh"
"$PYTHON" -m training.evaluate "$CHECKPOINT" "$CARRACING/val" --steps 1 2 5 10 25 50 100 -o "$OUT-ddim"
"$PYTHON" -m training.evaluate "$CHECKPOINT" "$CARRACING/val" --steps 1 2 5 10 25 50 100 \
    --scheduler DPMSolverMultistepScheduler UniPCMultistepScheduler -o "$OUT-solvers"
fill training.reproduction.figure_6a "$OUT-ddim" "$OUT-solvers" -o "$PICTURES/figure_6a.png"
# Against the paper's choice, window by window: fewer and more steps, then the solvers.
against=("DDIM, 25 steps=$OUT-ddim:ours, 25 steps" "DDIM, 1 step=$OUT-ddim:ours, 1 step")
for steps in 2 5 10 50 100; do against+=("DDIM, $steps steps=$OUT-ddim:ours, $steps steps"); done
for count in "1 step" "2 steps" "5 steps" "10 steps" "25 steps" "50 steps" "100 steps"; do
    against+=("DPM-Solver++, $count=$OUT-solvers:ours, $count, DPMSolverMultistepScheduler")
    against+=("UniPC, $count=$OUT-solvers:ours, $count, UniPCMultistepScheduler")
done
compare "25 steps of DDIM" "$OUT" "${against[@]}"
