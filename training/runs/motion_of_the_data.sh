#!/usr/bin/env bash
# The same recipe, with half the steps, on clips driven slowly, fast and mixed, as many windows each; all judged on all three. For docs/results/motion_of_the_data.md.
# After an interruption the same command goes on.
SEEDS="${SEEDS:-1 2}"
page=docs/results/motion_of_the_data.md
source "$(dirname "$0")/reproduction.inc.sh"
kinds=(slow mixed fast)
lists="$CARRACING/by-speed"
record "$CARRACING/val-72" 72 100000
# A third of the 500 clips for each kind, of the 72 held out as well, by the speed of their drivers.
fill_block motion training.reproduction.clips_by_speed "$CARRACING/train-500" "$CARRACING/val-72" -o "$lists"
for kind in "${kinds[@]}"; do
    for seed in $SEEDS; do
        train pair "motion-$kind-$seed" seed="$seed" data.train="$lists/train-$kind.jsonl" data.validation="$lists/val-mixed.jsonl" "${HALVED[@]}"
        for judged in "${kinds[@]}"; do
            "$PYTHON" -m training.evaluate "$RUNS-motion-$kind-$seed/pipeline" "$lists/val-$judged.jsonl" --stride 2 --steps 25 -o "$SCORES/motion/$kind-on-$judged-$seed"
        done
    done
done
for judged in "${kinds[@]}"; do
    methods=("trained on $judged=$(each "$SCORES/motion/$judged-on-$judged")")
    for kind in "${kinds[@]}"; do
        if [ "$kind" != "$judged" ]; then methods+=("trained on $kind=$(each "$SCORES/motion/$kind-on-$judged")"); fi
    done
    for simple in "copy of the nearest given frame" "DIS optical flow"; do methods+=("$simple=$(each "$SCORES/motion/$judged-on-$judged"):$simple"); done
    compare "$judged" "$SCORES/motion/$judged" "${methods[@]}"
done
predicted=()
for judged in "${kinds[@]}"; do
    for kind in "${kinds[@]}"; do predicted+=("$kind/$judged=$(each "$SCORES/motion/$kind-on-$judged")"); done
done
fill_block predicted training.reproduction.motion_predicts "$lists/motion.json" "${predicted[@]}"
fill_block curves training.reproduction.curves "trained on slow=$(each "$RUNS-motion-slow")" "mixed=$(each "$RUNS-motion-mixed")" "fast=$(each "$RUNS-motion-fast")" --log \
    --values heldout:diffusion/0.4 heldout:diffusion/0.95 -o "$PICTURES/motion_of_the_data.png"
