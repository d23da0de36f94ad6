#!/usr/bin/env bash
# Where a fixed number of parameters does most, in the planner or in the transformer, two seeds each. For docs/results/balance.md.
# After an interruption the same command goes on.
SEEDS="${SEEDS:-1 2}"
source "$(dirname "$0")/reproduction.inc.sh"
for seed in $SEEDS; do
    train pair "pair-$seed" seed="$seed"
    score "table-2/pair-$seed" "runs/claims-pair-$seed/pipeline" --no-planning
    for run in planner-heavy transformer-heavy; do
        train "${run//-/_}" "$run-$seed" seed="$seed"
        score "balance/$run-$seed" "runs/claims-$run-$seed/pipeline" --no-planning
    done
done
"$PYTHON" -m training.reproduction.comparison "37% in the planner=$(each "$SCORES/table-2/pair")" "71% in the planner=$(each "$SCORES/balance/planner-heavy")" \
    "5% in the planner=$(each "$SCORES/balance/transformer-heavy")" -o "$SCORES/balance" --page docs/results/balance.md all
"$PYTHON" -m training.reproduction.curves "37% in the planner=$(each runs/claims-pair)" "71%=$(each runs/claims-planner-heavy)" \
    "5%=$(each runs/claims-transformer-heavy)" --log --values heldout:diffusion/0.4 heldout:diffusion/0.95 -o "$PICTURES/balance.png"
