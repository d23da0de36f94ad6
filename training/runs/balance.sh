#!/usr/bin/env bash
# Where a fixed number of parameters does most, in the planner or in the transformer: between two frames and from one, at 64 pixels and, with half the steps, at
# 96; two seeds each. For docs/results/balance.md. SIZES=64 trains and fills one size alone. After an interruption the same command goes on.
SEEDS="${SEEDS:-1 2}"
page=docs/results/balance.md
source "$(dirname "$0")/reproduction.inc.sh"
models=(pair planner-heavy transformer-heavy)
labels=("37% in the planner" "71% in the planner" "5% in the planner")
halved=(stages.planner.steps=100 stages.transformer.steps=10 stages.joint.steps=40 stages.task.steps=200)
fill_block costs training.reproduction.run_costs "${labels[0]}=pair" "${labels[1]}=planner_heavy" "${labels[2]}=transformer_heavy"
for size in ${SIZES:-64 96}; do
    suffix="" block="" bigger=()
    if [ "$size" != 64 ]; then suffix="-$size" block=", $size pixels" bigger=(data.size="$size" "${halved[@]}"); fi
    folders=(balance balance balance)
    [ "$size" != 64 ] || folders[0]=table-2  # table_2.sh scores the same
    for seed in $SEEDS; do
        for i in 0 1 2; do
            model="${models[i]}"
            train "${model//-/_}" "$model$suffix-$seed" seed="$seed" ${bigger[@]+"${bigger[@]}"}
            score "${folders[i]}/$model$suffix-$seed" "$RUNS-$model$suffix-$seed/pipeline" --no-planning --size "$size"
            score "balance/$model$suffix-image-to-video-$seed" "$RUNS-$model$suffix-$seed/pipeline" --task image-to-video --size "$size"
        done
    done
    for task in "" -image-to-video; do
        methods=()
        [ -z "$task" ] || folders=(balance balance balance)
        for i in 0 1 2; do methods+=("${labels[i]}=$(each "$SCORES/${folders[i]}/${models[i]}$suffix$task")"); done
        name="${task#-}"
        compare "${name:-all}$block" "$SCORES/balance$task$suffix" "${methods[@]}"
    done
    runs=()
    for i in 0 1 2; do runs+=("${labels[i]}=$(each "$RUNS-${models[i]}$suffix")"); done
    fill_block "curves$block" training.reproduction.curves "${runs[@]}" --log --values heldout:diffusion/0.4 heldout:diffusion/0.95 -o "$PICTURES/balance${suffix//-/_}.png"
done
