#!/usr/bin/env bash
# Fig. 6c: identity attention against full attention, three seeds each. For docs/results/figure_6c.md.
# Typed again after an interruption it goes on where it stopped.
source "$(dirname "$0")/claims.inc.sh"
for seed in 0 1 2; do
    for run in identity-attention full-attention; do
        train "${run//-/_}" "$run-$seed" seed=$seed
    done
done
runs() { echo "runs/claims-$1-0,runs/claims-$1-1,runs/claims-$1-2"; }
"$PYTHON" -m training.claims.curves "identity attention=$(runs identity-attention)" "full attention=$(runs full-attention)" --log --every 4 \
    --values loss:diffusion_loss heldout:diffusion/0.4 heldout:diffusion/0.8 -o "$PICTURES/figure_6c.png"
for seed in 0 1 2; do
    for run in identity-attention full-attention; do
        score "figure-6c/$run-$seed" "runs/claims-$run-$seed/pipeline"
    done
    "$PYTHON" -m training.claims.compare "identity attention, seed $seed=$SCORES/figure-6c/identity-attention-$seed" \
        "full attention, seed $seed=$SCORES/figure-6c/full-attention-$seed" -o "$SCORES/figure-6c/seed-$seed" \
        --page docs/results/figure_6c.md "seed-$seed"
done
