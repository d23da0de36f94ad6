#!/usr/bin/env bash
# Every command behind checkpoints/mardini-tiny-driving, which goes on from checkpoints/mardini-tiny-carracing. Needs the extras `train` and `sim`.
# After an interruption the same command goes on.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
DATA=runs/data/carracing
DRIVING=runs/data/driving
record() {  # folder, number of clips, first seed, and further options; nothing if they are there
    [ -f "$1/metadata.jsonl" ] || "$PYTHON" -m training.data.recipes.car_racing "$1" --clips "$2" --first-seed "$3" "${@:4}"
}
record $DRIVING/careful 500 4000
record $DRIVING/varied 1500 0 --drivers varied
record $DATA-varied-val 40 110000 --drivers varied
record $DATA/val 24 100000
# Two one-thread processes use two cores best; the allocator keeps large tensors instead of returning them (docs/training.md).
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
export MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000
"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" \
    -m training.train_mardini training/configs/tiny-driving.yaml
"$PYTHON" -m training.evaluate runs/tiny-driving/pipeline $DATA/val --train-clips $DRIVING/careful --stride 2 \
    --steps 10 --scheduler unipc --seeds 0 1 2 3 --no-conditions -o outputs/evaluation-driving
"$PYTHON" -m training.publish runs/tiny-driving training/runs/mardini-tiny-driving.yaml outputs/evaluation-driving/results.json \
    --steps 10 --solver UniPCMultistepScheduler -o outputs/mardini-tiny-driving
