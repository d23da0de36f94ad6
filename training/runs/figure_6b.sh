#!/usr/bin/env bash
# Fig. 6b: interpolation and image-to-video over the joint-task stage while the share of kept frames falls, and where it does not fall. For
# docs/results/figure_6b.md. Typed again after an interruption it goes on where it stopped.
source "$(dirname "$0")/claims.inc.sh"
train pair pair
train falling_ratio falling-ratio
train constant_ratio constant-ratio
for task in interpolation image-to-video; do
    for run in constant-ratio falling-ratio; do
        score "figure-6b/$run-$task" "runs/claims-$run/pipeline" --task "$task"
    done
    "$PYTHON" -m training.claims.compare "constant ratio=$SCORES/figure-6b/constant-ratio-$task" \
        "falling ratio=$SCORES/figure-6b/falling-ratio-$task" -o "$SCORES/figure-6b/$task" --page docs/results/figure_6b.md "$task"
done
"$PYTHON" -m training.claims.curves "falling ratio=runs/claims-falling-ratio" "constant ratio=runs/claims-constant-ratio" --stages \
    --values heldout:diffusion/task/interpolation heldout:diffusion/task/image-to-video -o "$PICTURES/figure_6b.png"
