#!/usr/bin/env bash
# Fig. 6b: interpolation and image-to-video over the joint-task stage while the share of kept frames falls, and where it does not fall. For
# docs/results/figure_6b.md. Typed again after an interruption it goes on where it stopped.
source "$(dirname "$0")/claims.inc.sh"
train pair pair
train falling_ratio falling-ratio
train constant_ratio constant-ratio
for task in interpolation image-to-video; do
    for stage in kept-35-90 kept-20-50 kept-10-30; do
        score "figure-6b/falling-ratio-$stage-$task" "runs/claims-falling-ratio/stages/$stage" --task "$task"
    done
    score "figure-6b/constant-ratio-$task" runs/claims-constant-ratio/stages/kept-10-30 --task "$task"
done
for task in interpolation image-to-video; do
    "$PYTHON" -m training.claims.compare "end, constant ratio=$SCORES/figure-6b/constant-ratio-$task" \
        "35-90% kept=$SCORES/figure-6b/falling-ratio-kept-35-90-$task" "20-50% kept=$SCORES/figure-6b/falling-ratio-kept-20-50-$task" \
        "10-30% kept=$SCORES/figure-6b/falling-ratio-kept-10-30-$task" -o "$SCORES/figure-6b/$task" \
        --page docs/results/figure_6b.md "$task"
done
"$PYTHON" -m training.claims.curves "falling ratio=runs/claims-falling-ratio" "constant ratio=runs/claims-constant-ratio" --stages \
    --values heldout:diffusion/task/interpolation heldout:diffusion/task/image-to-video -o "$PICTURES/figure_6b.png"
