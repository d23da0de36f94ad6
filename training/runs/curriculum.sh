#!/usr/bin/env bash
# The whole curriculum against its last stage alone, at equal cost. For docs/results/curriculum.md.
# Typed again after an interruption it goes on where it stopped.
source "$(dirname "$0")/claims.inc.sh"
train pair pair
train direct direct
for task in interpolation image-to-video; do
    score "curriculum/pair-$task" runs/claims-pair/pipeline --task "$task"
    score "curriculum/direct-$task" runs/claims-direct/pipeline --task "$task"
    "$PYTHON" -m training.claims.compare "curriculum=$SCORES/curriculum/pair-$task" "last stage alone=$SCORES/curriculum/direct-$task" \
        -o "$SCORES/curriculum/$task" --page docs/results/curriculum.md "$task"
done
"$PYTHON" -m training.claims.curves "curriculum=runs/claims-pair" "last stage alone=runs/claims-direct" \
    --values heldout:diffusion/task/interpolation heldout:diffusion/task/image-to-video -o "$PICTURES/curriculum.png"
