#!/usr/bin/env bash
# Fig. 6b: interpolation and image-to-video over the joint-task stage while the share of kept frames falls, where it stays high, and where it is low from
# the beginning. For docs/results/figure_6b.md. After an interruption the same command goes on.
SEEDS="${SEEDS:-0}"
page=docs/results/figure_6b.md
source "$(dirname "$0")/reproduction.inc.sh"
for seed in $SEEDS; do
    train pair "pair-$seed" seed="$seed"
    for run in constant-ratio falling-ratio low-ratio; do
        train "${run//-/_}" "$run-$seed" seed="$seed" init_from="$RUNS-pair-$seed/stages/joint"
        for task in interpolation image-to-video; do
            score "figure-6b/$run-$task-$seed" "$RUNS-$run-$seed/pipeline" --task "$task"
        done
    done
done
for task in interpolation image-to-video; do
    compare "$task" "$SCORES/figure-6b/$task" "falling ratio=$(each "$SCORES/figure-6b/falling-ratio-$task")" \
        "high ratio=$(each "$SCORES/figure-6b/constant-ratio-$task")" "low ratio=$(each "$SCORES/figure-6b/low-ratio-$task")"
done
"$PYTHON" -m training.reproduction.curves "falling ratio=$(each $RUNS-falling-ratio)" "high ratio=$(each $RUNS-constant-ratio)" \
    "low ratio=$(each $RUNS-low-ratio)" --stages \
    --values heldout:diffusion/task/interpolation heldout:diffusion/task/image-to-video -o "$PICTURES/figure_6b.png"
