# Sourced by the scripts of the reproduction (table_2.sh and others) in place of pages.inc.sh, which it reads: functions that train and score one run.
# SCORES: where evaluations are kept; SEEDS: of the trainings, each script has those of its page.
source "$(dirname "${BASH_SOURCE[0]}")/pages.inc.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" ACCELERATE_USE_CPU=true
export MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000
RUN=claims
[ -z "$TOY" ] || RUN=toy
RUNS="runs/$RUN"  # the run NAME of `train` lies in $RUNS-NAME
record "$CARRACING/train-500" 500 0

stages_of() {  # a file of training/configs/reproduction: the names of its stages, or of those of the file that it extends
    local names
    names="$(sed -n 's/^.* name: \([a-z0-9-]*\).*$/\1/p' "training/configs/reproduction/$1" | sort -u)"
    if [ -n "$names" ]; then echo "$names"; else stages_of "$(sed -n 's/^extends: //p' "training/configs/reproduction/$1")"; fi
}
# The stages of pair.yaml and those like it with half the steps.
HALVED=(stages.planner.steps=100 stages.transformer.steps=10 stages.joint.steps=40 stages.task.steps=200)
HALVED+=(stages.planner.warmup_steps=20 stages.transformer.warmup_steps=5 stages.joint.warmup_steps=5 stages.task.warmup_steps=5)
train() {  # a configuration of training/configs/reproduction, the name of its run, and overrides; a finished run is not trained again, and is refused if its configuration has changed
    local small=() stage
    if [ -n "$TOY" ]; then
        small=(validation_windows=2 validate_every=2 log_every=1)
        for stage in $(stages_of "$1.yaml"); do
            small+=("stages.$stage.steps=2" "stages.$stage.batch_size=2" "stages.$stage.warmup_steps=0" "stages.$stage.compile=false")
        done
    fi
    "$PYTHON" ${THROUGH[@]+"${THROUGH[@]}"} -m training.train_mardini "training/configs/reproduction/$1.yaml" name="$RUN-$2" \
        data.train="$CARRACING/train-500" data.validation="$CARRACING/val" "${@:3}" ${small[@]+"${small[@]}"}
}
THROUGH=()  # a program of training/reproduction through which both run, with its options
score() {  # name of the result, pipeline, and further options
    "$PYTHON" ${THROUGH[@]+"${THROUGH[@]}"} -m training.evaluate "$2" "$CARRACING/val" --steps 25 -o "$SCORES/$1" "${@:3}"
}
each() {  # the names $1-SEED of all seeds, joined by commas
    local names=() seed
    for seed in $SEEDS; do names+=("$1-$seed"); done
    (IFS=,; echo "${names[*]}")
}
