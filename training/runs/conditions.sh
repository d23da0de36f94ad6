#!/usr/bin/env bash
# Whether the checkpoint does what it is told: steering, motion, the distance between frames, and a minute's drive. For docs/results/conditions.md.
# Another checkpoint, with the page left alone: CHECKPOINT=runs/mine/pipeline OUT=outputs/mine bash training/runs/conditions.sh
# PARTS names some of counterfactuals, between, drives, motion and rates (default: all). After an interruption the same command goes on.
own=checkpoints/mardini-tiny-driving results=conditions page=docs/results/conditions.md
source "$(dirname "$0")/pages.inc.sh"
name="$(basename "${CHECKPOINT%/pipeline}")"  # of the folders that counterfactuals and drives write
sampler=(--steps 10 --scheduler unipc)
record "$CARRACING-varied-val" 40 110000 --drivers varied
score() {  # folder, checkpoint, and further options
    "$PYTHON" -m training.evaluate "$2" "$CARRACING-varied-val" "${sampler[@]}" -o "$1" "${@:3}"
}
copied() {  # a block, a result, and what its picture shows
    fill_block "$1" training.reproduction.copied_result "$OUT-$2" --picture "$PICTURES/$(basename "$2" .md).png" "$3"
}
for part in ${PARTS:-counterfactuals between drives motion rates}; do
    case "$part" in
        counterfactuals)
            states=100
            [ -z "$TOY" ] || states=2
            "$PYTHON" -m training.counterfactuals "$CHECKPOINT" -o "$OUT-counterfactuals" --states "$states" "${sampler[@]}"
            copied counterfactuals "counterfactuals/$name/counterfactuals.md" "True futures and rollouts that were told left, straight on and right"
            # As the page drives: three steps, no guidance.
            "$PYTHON" -m training.counterfactuals "$CHECKPOINT" -o "$OUT-played" --states "$states" --steps 3 --scheduler unipc --guidance-scale 1
            fill_block played training.reproduction.copied_result "$OUT-played/$name/counterfactuals.md"
            ;;
        between)  # beside the checkpoint that it goes on from
            before=checkpoints/mardini-tiny-carracing careful="${CARRACING%/*}/driving/careful"
            record "$careful" 500 4000
            record "$CARRACING-pixels" 16 120000 --drivers pixels
            for kind in "the careful driver=$CARRACING/val" "drivers of all kinds=$CARRACING-varied-val" "another driver=$CARRACING-pixels"; do
                clips="${kind#*=}" kind="${kind%%=*}"
                folder="$OUT-${kind// /-}"
                setting=("$clips" --train-clips "$careful" --stride 2 "${sampler[@]}" --seeds 0 1 2 3)
                "$PYTHON" -m training.evaluate "$CHECKPOINT" "${setting[@]}" --no-conditions -o "$folder"
                "$PYTHON" -m training.evaluate "$before" "${setting[@]}" -o "$folder-before"
                compare "between, $kind" "$folder-compared" "mardini-tiny-driving, told=$folder" "mardini-tiny-driving, told nothing=$folder:ours, 10 steps, unipc, without conditions" \
                    "mardini-tiny-carracing=$folder-before" "DIS optical flow=$folder:DIS optical flow" "best match=$folder:best match among training windows" "cross-fade=$folder:cross-fade"
            done
            ;;
        drives)
            drives=12 seconds=60
            if [ -n "$TOY" ]; then drives=2 seconds=5; fi
            "$PYTHON" -m training.drives "$CHECKPOINT" -o "$OUT-drives" --drives "$drives" --seconds "$seconds" --steps 4 --scheduler unipc
            copied drives "drives/$name/drives.md" "Frames of drives in the simulator and inside the model"
            ;;
        motion)
            score "$OUT-motion" "$CHECKPOINT" --stride 2 --task image-to-video --condition-scale motion=0.25 motion=0.5 motion=2 motion=4
            fill_block motion training.reproduction.told_motion "$OUT-motion" --chart "$PICTURES/told_motion.png"
            ;;
        rates)  # the last stage once more from where the one before it ended, on one distance alone
            export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" ACCELERATE_USE_CPU=true
            run=tiny-driving steps=500 small=()
            if [ -n "$TOY" ]; then
                run=toy-driving steps=2 small=(validation_windows=2 quality_windows=0 data.train="$CARRACING-varied-val" data.validation="$CARRACING-varied-val")
                small+=(vae="$CHECKPOINT" init_from="$CHECKPOINT")
                for stage in joint decay; do
                    small+=("stages.$stage.steps=2" "stages.$stage.batch_size=2" "stages.$stage.warmup_steps=0" "stages.$stage.compile=false")
                done
            fi
            train() { "$PYTHON" -m training.train_mardini training/configs/tiny-driving.yaml ${small[@]+"${small[@]}"} "$@"; }
            # The stage before it, if the checkpoint's own training is not here; needs its clips (training/runs/mardini-tiny-driving.sh).
            [ -d "runs/$run/stages/joint" ] || train name="$run" --stop-after joint
            rates=()
            for stride in 1 2 3 4; do
                train name="$run-$stride" init_from="runs/$run/stages/joint" --start-at decay "strides={$stride: 1}" "stages.decay.steps=$steps"
                score "$OUT-rates/all-$stride" "$CHECKPOINT" --stride "$stride"
                score "$OUT-rates/alone-$stride" "runs/$run-$stride/pipeline" --stride "$stride"
                rates+=("0.$(printf '%02d' $((4 * stride)))=$OUT-rates/all-$stride,$OUT-rates/alone-$stride")
            done
            fill_block rates training.reproduction.rates "${rates[@]}"
            ;;
        *) echo "PARTS names '$part'; the parts are counterfactuals, between, drives, motion and rates" >&2; exit 1 ;;
    esac
done
