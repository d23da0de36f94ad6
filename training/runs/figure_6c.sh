#!/usr/bin/env bash
# Fig. 6c: identity attention against full attention, three seeds each. For docs/results/figure_6c.md.
# After an interruption the same command goes on. With a name and overrides, the same of other runs, whose chart and tables lie in
# $SCORES/figure-6c-NAME and not on the page: figure_6c.sh temporal stages.joint.temporal_attention=temporal stages.joint.steps=300
SEEDS="${SEEDS:-0 1 2}"
page=docs/results/figure_6c.md
[ -z "${1:-}" ] || PAGE=""
source "$(dirname "$0")/reproduction.inc.sh"
variant="${1:+-$1}"
folder="figure-6c$variant"
chart="${1:+$SCORES/$folder/curves.png}"
for seed in $SEEDS; do
    for run in identity-attention full-attention; do
        train "${run//-/_}" "$run$variant-$seed" seed="$seed" "${@:2}"
        score "$folder/$run-$seed" "$RUNS-$run$variant-$seed/pipeline"
    done
done
"$PYTHON" -m training.reproduction.curves "identity attention=$(each "$RUNS-identity-attention$variant")" \
    "full attention=$(each "$RUNS-full-attention$variant")" --log --every 4 \
    --values loss:diffusion_loss heldout:diffusion/0.4 heldout:diffusion/0.8 -o "${chart:-$PICTURES/figure_6c.png}"
compare all "$SCORES/$folder" "identity attention=$(each "$SCORES/$folder/identity-attention")" "full attention=$(each "$SCORES/$folder/full-attention")"
