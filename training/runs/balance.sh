#!/usr/bin/env bash
# Where a fixed number of parameters does most, in the planner or in the transformer: between two frames, at 64 pixels and equal steps; and, at equal cost, the two
# extremes between two frames and from one, at 64 pixels and at 96; two seeds each. For docs/results/balance.md. SIZES="64" trains and fills a part; the parts are 64,
# 64-short and 96-short.
# After an interruption the same command goes on.
SEEDS="${SEEDS:-1 2}"
page=docs/results/balance.md
source "$(dirname "$0")/reproduction.inc.sh"
models=(pair planner-heavy transformer-heavy)
labels=("37% in the planner" "71% in the planner" "5% in the planner")
# Of planner-heavy as many steps as cost what half the steps of transformer-heavy do.
LEVELLED=(stages.planner.steps=136 stages.transformer.steps=14 stages.joint.steps=54 stages.task.steps=272)
LEVELLED+=(stages.planner.warmup_steps=20 stages.transformer.warmup_steps=5 stages.joint.warmup_steps=5 stages.task.warmup_steps=5)
costs=("${labels[0]}=pair" "${labels[1]}=planner_heavy" "${labels[2]}=transformer_heavy")
for size in 64 96; do
    costs+=("${labels[1]}, $size pixels, at equal cost=planner_heavy data.size=$size ${LEVELLED[*]}")
    costs+=("${labels[2]}, $size pixels, at equal cost=transformer_heavy data.size=$size ${HALVED[*]}")
done
fill_block costs training.reproduction.run_costs "${costs[@]}"
for part in ${SIZES:-64 64-short 96-short}; do
    size="${part%-short}" suffix="" block="" compared=(0 1 2) folders=(balance balance balance) tasks=(all)
    if [ "$part" != 64 ]; then
        suffix="-$part" block=", $size pixels, at equal cost" compared=(1 2) tasks=(all image-to-video)
    else
        folders[0]=table-2  # table_2.sh scores the same
    fi
    for seed in $SEEDS; do
        for i in "${compared[@]}"; do
            model="${models[i]}"
            case "$part $model" in
                64\ *) changed=() ;;
                *planner-heavy) changed=(data.size="$size" "${LEVELLED[@]}") ;;
                *) changed=(data.size="$size" "${HALVED[@]}") ;;
            esac
            train "${model//-/_}" "$model$suffix-$seed" seed="$seed" ${changed[@]+"${changed[@]}"}
            dropped=()
            [ "${folders[i]}" = balance ] || dropped=(--no-planning)
            score "${folders[i]}/$model$suffix-$seed" "$RUNS-$model$suffix-$seed/pipeline" --size "$size" ${dropped[@]+"${dropped[@]}"}
            for task in "${tasks[@]}"; do [ "$task" = all ] || score "balance/$model$suffix-$task-$seed" "$RUNS-$model$suffix-$seed/pipeline" --task "$task" --size "$size"; done
        done
    done
    for task in "${tasks[@]}"; do
        methods=() named="$suffix"
        [ "$task" = all ] || named="$suffix-$task"
        for i in "${compared[@]}"; do methods+=("${labels[i]}=$(each "$SCORES/${folders[i]}/${models[i]}$named")"); done
        compare "$task$block" "$SCORES/balance$named" "${methods[@]}"
    done
    runs=()
    for i in "${compared[@]}"; do runs+=("${labels[i]}=$(each "$RUNS-${models[i]}$suffix")"); done
    fill_block "curves$block" training.reproduction.curves "${runs[@]}" --log --values heldout:diffusion/0.4 heldout:diffusion/0.95 -o "$PICTURES/balance${suffix//-/_}.png"
done
