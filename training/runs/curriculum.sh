#!/usr/bin/env bash
# The whole curriculum against its last stage alone, at equal cost: by windows of nine frames, and by clips that are continued by 64 and 256 frames.
# For docs/results/curriculum.md. After an interruption the same command goes on.
SEEDS="${SEEDS:-1 2}"
page=docs/results/curriculum.md
source "$(dirname "$0")/reproduction.inc.sh"
ranges=(--range 1 32 --range 33 64 --range 225 256)
[ -z "$TOY" ] || ranges=(--range 1 4 --range 5 8)
frames="${ranges[${#ranges[@]}-1]}"  # macOS's bash has no negative places
fill_block costs training.reproduction.run_costs "curriculum=pair" "last stage alone=direct"
for seed in $SEEDS; do
    for run in pair direct; do
        train "$run" "$run-$seed" seed="$seed"
        for task in interpolation image-to-video; do
            score "curriculum/$run-$task-$seed" "$RUNS-$run-$seed/pipeline" --task "$task"
        done
        "$PYTHON" -m training.drift "$RUNS-$run-$seed/pipeline" "$CARRACING/val" --frames "$frames" --steps 4 --scheduler unipc --batch-size 8 --arm plain "${ranges[@]}" -o "$SCORES/curriculum/drift"
    done
done
for task in interpolation image-to-video; do
    compare "$task" "$SCORES/curriculum/$task" "curriculum=$(each "$SCORES/curriculum/pair-$task")" "last stage alone=$(each "$SCORES/curriculum/direct-$task")"
done
fill_block "continued" training.reproduction.drift_comparison "curriculum=$(each "$SCORES/curriculum/drift/$RUN-pair")" "last stage alone=$(each "$SCORES/curriculum/drift/$RUN-direct")" \
    -o "$PICTURES/curriculum_continued.png"
fill_block curves training.reproduction.curves "curriculum=$(each "$RUNS-pair")" "last stage alone=$(each "$RUNS-direct")" --log \
    --values heldout:diffusion/task/interpolation heldout:diffusion/task/image-to-video -o "$PICTURES/curriculum.png"
