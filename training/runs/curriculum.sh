#!/usr/bin/env bash
# The whole curriculum against its last stage alone, at equal cost. For docs/results/curriculum.md.
# After an interruption the same command goes on.
SEEDS="${SEEDS:-1}"
source "$(dirname "$0")/reproduction.inc.sh"
for seed in $SEEDS; do
    for run in pair direct; do
        train "$run" "$run-$seed" seed="$seed"
        for task in interpolation image-to-video; do
            score "curriculum/$run-$task-$seed" "runs/claims-$run-$seed/pipeline" --task "$task"
        done
    done
done
for task in interpolation image-to-video; do
    "$PYTHON" -m training.reproduction.comparison "curriculum=$(each "$SCORES/curriculum/pair-$task")" "last stage alone=$(each "$SCORES/curriculum/direct-$task")" \
        -o "$SCORES/curriculum/$task" --page docs/results/curriculum.md "$task"
done
"$PYTHON" -m training.reproduction.curves "curriculum=$(each runs/claims-pair)" "last stage alone=$(each runs/claims-direct)" --log \
    --values heldout:diffusion/task/interpolation heldout:diffusion/task/image-to-video -o "$PICTURES/curriculum.png"
