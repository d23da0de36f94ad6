#!/usr/bin/env bash
# Fig. 5: with and without the planning signal, from the same noise. For docs/results/figure_5.md. Needs the networks of docs/evaluation.md, and for the second half the laps:
#   RACING=runs/data/rc_racing bash training/runs/figure_5.sh
# Another checkpoint of CarRacing, with the page left alone: CHECKPOINT=runs/mine/pipeline OUT=outputs/mine bash training/runs/figure_5.sh
# After an interruption the same command goes on.
own=checkpoints/mardini-tiny-carracing results=figure-5 page=docs/results/figure_5.md
source "$(dirname "$0")/pages.inc.sh"
RACING="${RACING:-}"
read -ra SEEDS <<< "${SEEDS:-0}"
sample() {  # name of the result, checkpoint, held-out clips, and further options
    "$PYTHON" -m training.evaluate "$2" "$3" --steps 25 --seeds "${SEEDS[@]}" --sheets 2 -o "$OUT-$1" "${@:4}"
}
side_by_side() {  # name of the result and of its block, its planned row, and methods beside it
    compare "$1" "$OUT-$1" "with planning signals=$OUT-$1:$2" "planning signal dropped=$OUT-$1:$2, planning signal dropped" \
        "planning signals of another window=$OUT-$1:$2, planning signals of another window" "${@:3}" \
        "autoencoder alone (ceiling)=$OUT-$1:autoencoder alone (ceiling)"
}
between() {  # name, checkpoint, held-out clips: both ends given
    sample "$@" --no-planning --wrong-planning
    side_by_side "$1" "ours, 25 steps" "cross-fade=$OUT-$1:cross-fade" "DIS optical flow=$OUT-$1:DIS optical flow"
}
onwards() {  # the same with the first frame alone: without guidance, and with the guidance that the pipeline takes
    local name="$1-image-to-video"
    sample "$name" "${@:2}" --task image-to-video --guidance-scale 1 --no-planning --wrong-planning
    sample "$name-guided" "${@:2}" --task image-to-video
    side_by_side "$name" "ours, 25 steps, guidance 1" "with planning signals, guidance 2.5=$OUT-$name-guided:ours, 25 steps" \
        "copy of the given frame=$OUT-$name:copy of the nearest given frame"
}
for way in between onwards; do
    "$way" carracing "$CHECKPOINT" "$CARRACING/val"
    if [ -n "$RACING" ]; then "$way" racing checkpoints/mardini-tiny-racing "$RACING/val"; fi
done
"$PYTHON" -m training.reproduction.released_models "$(dirname "$OUT")" \
    --picture "$(basename "$OUT")-carracing/planning_0.png=$PICTURES/figure_5.png" \
    "$(basename "$OUT")-carracing-image-to-video/planning_0.png=$PICTURES/figure_5_image_to_video.png"
