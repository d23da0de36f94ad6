#!/usr/bin/env bash
# How far slow_motion and extend go before quality falls. For docs/results/long_video.md.
# Another checkpoint, with the page left alone: CHECKPOINT=runs/mine/pipeline OUT=outputs/mine bash training/runs/long_video.sh
# What is about further checkpoints (noise on generated frames, laps) is left out then.
# PARTS names some of near, places, drift, laps and slowed (default: all). After an interruption the same command goes on; so it does with more clips (--max-clips 8,
# then without). The laps are left out without RACING, their folder.
own=checkpoints/mardini-tiny-carracing results=long-video page=docs/results/long_video.md
source "$(dirname "$0")/pages.inc.sh"
name="$(basename "${CHECKPOINT%/pipeline}")"  # of the folder that training.drift writes
drift() {  # checkpoint, folder, clips, and further options
    "$PYTHON" -m training.drift "$1" "$3" -o "$2" --steps 4 --scheduler unipc "${@:4}"
}
# The ranges of frames that are shown, and the last nine of 9, 18, ... 1,152.
ranges=(--range 1 50 --range 101 150 --range 451 500 --range 951 1000) doubled=(--range 1 9) frames=1152
[ -z "$TOY" ] || ranges=(--range 1 12 --range 25 36) frames=36
for ((last = 18; last <= frames; last *= 2)); do doubled+=(--range $((last - 8)) "$last"); done
parts="near places drift slowed"
[ "$CHECKPOINT" != "$own" ] || parts="near places drift ${RACING:+laps} slowed"
plain=(--arm plain) anchor=(--arm "anchor: anchors=1")
for part in ${PARTS:-$parts}; do
    case "$part" in
        near)
            fill training.reproduction.long_video_quality "$CHECKPOINT" "$CARRACING/val" -o "$OUT" --pictures "$PICTURES" "$@"
            ;;
        places)
            fill training.reproduction.places_between "$CHECKPOINT" "$CARRACING/val" -o "$OUT-places" --steps 10 --max-clips 12
            ;;
        drift)  # what may help, on eight tracks; then what helps, on all (the eight are not continued twice)
            setting=("$CARRACING/val" --frames "$frames" --batch-size 8 --kept "$OUT-drift/kept" "${ranges[@]}" "${doubled[@]}")
            drift "$CHECKPOINT" "$OUT-remedies" "${setting[@]}" --max-clips 8 "${plain[@]}" --arm "without guidance: guidance_scale=1" --arm "guidance of 4: guidance_scale=4" "${anchor[@]}" \
                --arm "two anchors: anchors=2" --arm "colours kept: colours=1" --arm "overlap of 6: overlap=6"
            arms=()
            for arm in plain "without guidance" "guidance of 4" anchor "two anchors" "colours kept" "overlap of 6"; do arms+=("$arm=$OUT-remedies/$name:$arm"); done
            fill_block remedies training.reproduction.drift_comparison "${arms[@]}" "${ranges[@]}"
            # Noise on generated frames is for a checkpoint that learned to be led by noisy ones.
            if [ "$CHECKPOINT" = "$own" ]; then
                noisy=checkpoints/mardini-tiny-driving
                drift "$noisy" "$OUT-noise" "${setting[@]}" --max-clips 8 "${plain[@]}" --arm "noise: generated_noise=0.1" "${anchor[@]}"
                noisy="$OUT-noise/${noisy##*/}"
                fill_block "trained with noise" training.reproduction.drift_comparison "plain=$noisy:plain" "noise=$noisy:noise" "anchor=$noisy:anchor" "${ranges[@]}"
            fi
            drift "$CHECKPOINT" "$OUT-drift" "${setting[@]}" "${plain[@]}" "${anchor[@]}"
            arms=("plain=$OUT-drift/$name:plain" "anchor=$OUT-drift/$name:anchor")
            fill_block drift training.reproduction.drift_comparison "${arms[@]}" "${ranges[@]}" -o "$PICTURES/long_video_drift.png"
            fill_block "extension by powers of two" training.reproduction.drift_comparison "${arms[@]}" "${doubled[@]}" -o "$PICTURES/long_video_extended.png"
            ;;
        laps)
            : "${RACING:?names the folder of laps, with train and val in it}"
            drift checkpoints/mardini-tiny-racing "$OUT-laps" "$RACING/val" --frames "$frames" --batch-size 14 "${ranges[@]}" "${plain[@]}" "${anchor[@]}"
            laps="$OUT-laps/mardini-tiny-racing"
            fill_block laps training.reproduction.drift_comparison "plain=$laps:plain" "anchor=$laps:anchor" -o "$PICTURES/long_video_laps.png"
            ;;
        slowed)  # nine frames to 17, 33, ... 1,025
            factors=(2 4 8 16 32 64 128) apart=32
            if [ -n "$TOY" ]; then factors=(2 4) apart=4; fi
            record "$CARRACING/val-long" 12 200000 --frames 264
            record "$CARRACING/val-long-50" 12 200000 --frames 528 --fps 50
            fill training.reproduction.slow_motion_doubling "$CHECKPOINT" "$CARRACING/val-long" -o "$OUT-slowed" --factors "${factors[@]}" --apart "$apart" --finer "$CARRACING/val-long-50" --steps 5 --max-clips 8 \
                --chart "$PICTURES/long_video_slowed.png"
            ;;
        *) echo "PARTS names '$part'; the parts are near, places, drift, laps and slowed" >&2; exit 1 ;;
    esac
done
