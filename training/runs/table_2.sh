#!/usr/bin/env bash
# Table 2: planner alone, transformer alone, small planner and transformer, large planner and transformer, two seeds each, one of the planner alone, and the pair without its signals;
# then the transformer alone with as many steps of diffusion as the pair has had. For docs/results/table_2.md.
# After an interruption the same command goes on.
SEEDS="${SEEDS:-1 2}"
page=docs/results/table_2.md
source "$(dirname "$0")/reproduction.inc.sh"
unplanned="ours, 25 steps, planning signal dropped"
first="${SEEDS%% *}"
train planner_alone "planner-alone-$first" seed="$first"
"$PYTHON" -m training.reproduction.planner_alone "$RUNS-planner-alone-$first" "$CARRACING/val" -o "$SCORES/table-2/planner-alone-$first"
for seed in $SEEDS; do
    for run in transformer-alone pair large-pair; do
        train "${run//-/_}" "$run-$seed" seed="$seed"
        score "table-2/$run-$seed" "$RUNS-$run-$seed/pipeline" --no-planning
    done
    train transformer_alone "transformer-alone-500-$seed" seed="$seed" stages.task.steps=500
    score "table-2/transformer-alone-500-$seed" "$RUNS-transformer-alone-500-$seed/pipeline" --no-planning
done
set_side_by_side() {  # block of the page, and methods
    compare "$1" "$SCORES/table-2/$1" "${@:2}"
}
alone="$(each "$SCORES/table-2/transformer-alone"):$unplanned"
pair="$(each "$SCORES/table-2/pair")"
large="$(each "$SCORES/table-2/large-pair")"
set_side_by_side all "transformer alone=$alone" "small planner + transformer=$pair" "large planner + transformer=$large"
set_side_by_side planner-alone "transformer alone=$SCORES/table-2/transformer-alone-$first:$unplanned" \
    "planner alone=$SCORES/table-2/planner-alone-$first"
set_side_by_side pairs "small planner + transformer=$pair" "large planner + transformer=$large"
set_side_by_side unplanned "transformer alone=$alone" "small planner + transformer, without its signals=$pair:$unplanned"
set_side_by_side equal-diffusion "transformer alone, 500 steps=$(each "$SCORES/table-2/transformer-alone-500"):$unplanned" \
    "small planner + transformer=$pair" "large planner + transformer=$large"
"$PYTHON" -m training.reproduction.curves "transformer alone=$(each $RUNS-transformer-alone)" "small planner + transformer=$(each $RUNS-pair)" \
    "large planner + transformer=$(each $RUNS-large-pair)" --log --values heldout:diffusion/0.4 heldout:diffusion/0.95 -o "$PICTURES/table_2.png"
