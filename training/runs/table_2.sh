#!/usr/bin/env bash
# Table 2: planner alone, transformer alone, small planner and transformer, large planner and transformer. For docs/results/table_2.md.
# Typed again after an interruption it goes on where it stopped.
source "$(dirname "$0")/claims.inc.sh"
train planner_alone planner-alone
"$PYTHON" -m training.claims.planner_alone runs/claims-planner-alone "$CARRACING/val" -o "$SCORES/table-2/planner-alone"
train transformer_alone transformer-alone
score table-2/transformer-alone runs/claims-transformer-alone/pipeline --no-planning
train pair pair
score table-2/pair runs/claims-pair/pipeline --no-planning
train large_pair large-pair
score table-2/large-pair runs/claims-large-pair/pipeline --no-planning
"$PYTHON" -m training.claims.compare "transformer alone=$SCORES/table-2/transformer-alone:ours, 25 steps, planning signal dropped" \
    "planner alone=$SCORES/table-2/planner-alone" \
    "small planner + transformer=$SCORES/table-2/pair" "large planner + transformer=$SCORES/table-2/large-pair" -o "$SCORES/table-2" \
    --page docs/results/table_2.md all
"$PYTHON" -m training.claims.compare "small planner + transformer=$SCORES/table-2/pair" \
    "large planner + transformer=$SCORES/table-2/large-pair" -o "$SCORES/table-2/pairs" \
    --page docs/results/table_2.md pairs
"$PYTHON" -m training.claims.curves "transformer alone=runs/claims-transformer-alone" "small planner + transformer=runs/claims-pair" \
    "large planner + transformer=runs/claims-large-pair" --log --values heldout:diffusion/0.4 heldout:diffusion/0.95 -o "$PICTURES/table_2.png"
# Two more seeds of the transformer alone and of the small pair, also without the plan that it was trained with.
unplanned="ours, 25 steps, planning signal dropped"
for seed in 1 2; do
    for run in transformer-alone pair; do
        train "${run//-/_}" "$run-$seed" seed=$seed
        score "table-2/$run-$seed" "runs/claims-$run-$seed/pipeline" --no-planning
    done
    "$PYTHON" -m training.claims.compare "transformer alone=$SCORES/table-2/transformer-alone-$seed:$unplanned" \
        "small planner + transformer=$SCORES/table-2/pair-$seed" "the same, without its plan=$SCORES/table-2/pair-$seed:$unplanned" \
        -o "$SCORES/table-2/seed-$seed" --page docs/results/table_2.md "seed-$seed"
done
# The transformer alone with as many steps of diffusion as the pair has had.
for seed in 1 2; do
    train transformer_alone "transformer-alone-500-$seed" seed=$seed stages.task.steps=500
    score "table-2/transformer-alone-500-$seed" "runs/claims-transformer-alone-500-$seed/pipeline" --no-planning
    "$PYTHON" -m training.claims.compare "transformer alone, 500 steps=$SCORES/table-2/transformer-alone-500-$seed:$unplanned" \
        "small planner + transformer=$SCORES/table-2/pair-$seed" -o "$SCORES/table-2/equal-diffusion-$seed" \
        --page docs/results/table_2.md "equal-diffusion-$seed"
done
