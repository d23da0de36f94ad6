#!/usr/bin/env bash
# Where a fixed number of parameters does most, in the planner or in the transformer. For docs/results/balance.md.
# Typed again after an interruption it goes on where it stopped.
source "$(dirname "$0")/claims.inc.sh"
train pair pair
score table-2/pair runs/claims-pair/pipeline --no-planning
for run in planner-heavy transformer-heavy; do
    train "${run//-/_}" "$run"
    score "balance/$run" "runs/claims-$run/pipeline" --no-planning
done
"$PYTHON" -m training.claims.compare "37% in the planner=$SCORES/table-2/pair" "71% in the planner=$SCORES/balance/planner-heavy" \
    "5% in the planner=$SCORES/balance/transformer-heavy" -o "$SCORES/balance" --page docs/results/balance.md all
"$PYTHON" -m training.claims.curves "37% in the planner=runs/claims-pair" "71%=runs/claims-planner-heavy" "5%=runs/claims-transformer-heavy" --log \
    --values heldout:diffusion/0.4 heldout:diffusion/0.95 -o "$PICTURES/balance.png"
