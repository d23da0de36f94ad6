# Sourced by the scripts of the reproduction (table_2.sh and others): their clips, and functions that train and score one run.
# The pages' tables have LPIPS and FD columns: install their networks first (docs/evaluation.md), or the pages stay as they are.
# CARRACING: where the clips are or will be; SCORES: where evaluations are kept; PICTURES: where charts go; SEEDS: of the
# trainings, each script has those of its page.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
CARRACING="${CARRACING:-runs/data/carracing}"
SCORES="${SCORES:-outputs/results}"
PICTURES="${PICTURES:-docs/images/results}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" ACCELERATE_USE_CPU=true
export MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000
[ -f "$CARRACING/train-500/metadata.jsonl" ] || "$PYTHON" -m training.data.recipes.car_racing "$CARRACING/train-500" --clips 500 --first-seed 0
[ -f "$CARRACING/val/metadata.jsonl" ] || "$PYTHON" -m training.data.recipes.car_racing "$CARRACING/val" --clips 24 --first-seed 100000

train() {  # a configuration of training/configs/reproduction, the name of its run, and overrides; a finished run is not trained again, and is refused if its configuration has changed
    "$PYTHON" -m training.train_mardini "training/configs/reproduction/$1.yaml" name="claims-$2" \
        data.train="$CARRACING/train-500" data.validation="$CARRACING/val" "${@:3}"
}
score() {  # name of the result, pipeline, and further options
    "$PYTHON" -m training.evaluate "$2" "$CARRACING/val" --steps 25 -o "$SCORES/$1" "${@:3}"
}
each() {  # the names $1-SEED of all seeds, joined by commas
    local names=() seed
    for seed in $SEEDS; do names+=("$1-$seed"); done
    (IFS=,; echo "${names[*]}")
}
