#!/usr/bin/env bash
# Fig. 6c: identity attention against full attention, three seeds each. For docs/results/figure_6c.md.
# Typed again after an interruption it goes on where it stopped. With a name and overrides, the same of other runs, whose chart and tables lie in
# $SCORES/figure-6c-NAME and not on the page: figure_6c.sh temporal stages.joint.temporal_attention=temporal stages.joint.steps=300
source "$(dirname "$0")/claims.inc.sh"
variant="${1:+-$1}"
folder="figure-6c$variant"
chart="${1:+$SCORES/$folder/curves.png}"
for seed in 0 1 2; do
    for run in identity-attention full-attention; do
        train "${run//-/_}" "$run$variant-$seed" seed=$seed "${@:2}"
    done
done
runs() { echo "runs/claims-$1$variant-0,runs/claims-$1$variant-1,runs/claims-$1$variant-2"; }
"$PYTHON" -m training.claims.curves "identity attention=$(runs identity-attention)" "full attention=$(runs full-attention)" --log --every 4 \
    --values loss:diffusion_loss heldout:diffusion/0.4 heldout:diffusion/0.8 -o "${chart:-$PICTURES/figure_6c.png}"
for seed in 0 1 2; do
    for run in identity-attention full-attention; do
        score "$folder/$run-$seed" "runs/claims-$run$variant-$seed/pipeline"
    done
    page=(--page docs/results/figure_6c.md "seed-$seed")
    [ -z "$variant" ] || page=()
    "$PYTHON" -m training.claims.compare "identity attention, seed $seed=$SCORES/$folder/identity-attention-$seed" \
        "full attention, seed $seed=$SCORES/$folder/full-attention-$seed" -o "$SCORES/$folder/seed-$seed" ${page[@]+"${page[@]}"}
done
