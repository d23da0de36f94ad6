#!/usr/bin/env bash
# How long the early stages of the curriculum should be: as they are, halved, doubled and left out, at equal total cost. For docs/results/stages.md.
# After an interruption the same command goes on; the runs `pair` and `direct` are those of curriculum.sh.
SEEDS="${SEEDS:-1 2}"
page=docs/results/stages.md
source "$(dirname "$0")/reproduction.inc.sh"
runs=(pair early-halved early-doubled direct)
labels=("as they are" "halved" "doubled" "left out")
configs=()
for i in 0 1 2 3; do configs+=("${labels[i]}=${runs[i]//-/_}"); done
fill_block costs training.reproduction.run_costs "${configs[@]}"
for seed in $SEEDS; do
    for run in "${runs[@]}"; do
        train "${run//-/_}" "$run-$seed" seed="$seed"
        for task in interpolation image-to-video; do
            score "curriculum/$run-$task-$seed" "$RUNS-$run-$seed/pipeline" --task "$task"
        done
    done
done
for task in interpolation image-to-video; do
    methods=()
    for i in 0 1 2 3; do methods+=("${labels[i]}=$(each "$SCORES/curriculum/${runs[i]}-$task")"); done
    compare "$task" "$SCORES/stages/$task" "${methods[@]}"
done
curves=()
for i in 0 1 2 3; do curves+=("${labels[i]}=$(each "$RUNS-${runs[i]}")"); done
fill_block curves training.reproduction.curves "${curves[@]}" --log --values heldout:diffusion/task/interpolation heldout:diffusion/task/image-to-video -o "$PICTURES/stages.png"
