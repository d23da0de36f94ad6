#!/usr/bin/env bash
# How far slow_motion and extend go before quality falls. For docs/results/long_video.md.
# Another checkpoint, with the page left alone: CHECKPOINT=runs/mine/pipeline OUT=outputs/mine bash training/runs/long_video.sh
# PARTS names some of near, places, drift, extended and slowed (default: all). After an interruption the same command goes on; so it does with more clips (--max-clips 8,
# then without).
own=checkpoints/mardini-tiny-carracing results=long-video page=docs/results/long_video.md
source "$(dirname "$0")/pages.inc.sh"
name="$(basename "${CHECKPOINT%/pipeline}")"  # of the folder that training.drift writes
drift() {  # folder, clips, and further options
    "$PYTHON" -m training.drift "$CHECKPOINT" "$2" -o "$1" --steps 4 --scheduler unipc "${@:3}"
}
for part in ${PARTS:-near places drift extended slowed}; do
    case "$part" in
        near)
            fill training.reproduction.long_video_quality "$CHECKPOINT" "$CARRACING/val" -o "$OUT" --pictures "$PICTURES" "$@"
            ;;
        places)
            fill training.reproduction.places_between "$CHECKPOINT" "$CARRACING/val" -o "$OUT-places" --steps 10 --max-clips 12
            ;;
        drift)
            frames=500
            [ -z "$TOY" ] || frames=50
            drift "$OUT-drift" "$CARRACING/val" --frames "$frames" --max-clips 5 --batch-size 5 --arm plain
            fill_block drift training.reproduction.drift_comparison "plain=$OUT-drift/$name"
            ;;
        extended)  # by 9, 18, ... 1,152 frames, as it is and with what may help
            ranges=(--range 1 9) frames=1152
            [ -z "$TOY" ] || frames=36
            for ((last = 18; last <= frames; last *= 2)); do ranges+=(--range $((last / 2 + 1)) "$last"); done
            for seed in 0 1; do
                drift "$OUT-extended-$seed" "$CARRACING/val" --frames "$frames" --max-clips 8 --seed "$seed" "${ranges[@]}" \
                    --arm plain --arm "noise on generated frames: generated_noise=0.1" --arm "overlap of 6: overlap=6" --arm "colours kept: colours=1"
            done
            arms=()
            for arm in plain "noise on generated frames" "overlap of 6" "colours kept"; do
                arms+=("$arm=$OUT-extended-0/$name,$OUT-extended-1/$name:$arm")
            done
            fill_block "extension by powers of two" training.reproduction.drift_comparison "${arms[@]}" -o "$PICTURES/long_video_extended.png"
            ;;
        slowed)  # nine frames to 17, 33, ... 1,025
            factors=(2 4 8 16 32 64 128) apart=32
            if [ -n "$TOY" ]; then factors=(2 4) apart=4; fi
            record "$CARRACING/val-long" 12 200000 --frames 264
            fill training.reproduction.slow_motion_doubling "$CHECKPOINT" "$CARRACING/val-long" -o "$OUT-slowed" --factors "${factors[@]}" --apart "$apart" --steps 5 --max-clips 8 \
                --chart "$PICTURES/long_video_slowed.png"
            ;;
        *) echo "PARTS names '$part'; the parts are near, places, drift, extended and slowed" >&2; exit 1 ;;
    esac
done
