#!/usr/bin/env bash
# Is identity attention necessary? Against full attention as it is, and with batch normalization, with tighter clipping, with a learned mark of reference frames,
# and with the last two together; first for fewer steps at 16 times the rate, which is where stabilizers are for, then at the usual one.
# For docs/results/stabilizers.md. ARMS names fewer of them; the first is what all are compared with.
# After an interruption the same command goes on.
SEEDS="${SEEDS:-1 2}"
page=docs/results/stabilizers.md
source "$(dirname "$0")/reproduction.inc.sh"
read -ra arms <<< "${ARMS:-identity full clipped marked marked-clipped batch-norm}"
label_of() {
    case "$1" in
        identity) echo "identity attention" ;;
        full) echo "full attention" ;;
        clipped) echo "full attention, clipped at 0.1" ;;
        marked) echo "full attention, references marked" ;;
        marked-clipped) echo "full attention, marked and clipped" ;;
        batch-norm) echo "full attention, batch normalization" ;;
    esac
}
config_of() {
    case "$1" in
        identity) echo identity_attention ;;
        *clipped) echo tight_clipping ;;
        *) echo full_attention ;;
    esac
}
# A step of full attention, which asks for all frames and not for the masked ones alone, costs a quarter more: equal cost, not equal steps.
cost_as_much() { echo "$(($1 * 325 / 400))"; }
identity="${STEPS:-280}"
full="$(cost_as_much "$identity")"
costs=("identity attention=identity_attention stages.joint.steps=$identity" "full attention=full_attention stages.joint.steps=$full")
fill_block costs training.reproduction.run_costs "${costs[@]}" "clipped=tight_clipping stages.joint.steps=$full"
methods=() runs=() higher=()
choose() {  # an arm: sets the steps that it may take and the program through which it runs
    case "$1" in
        marked*) THROUGH=(-m training.reproduction.stabilizers --marks) ;;
        batch-norm) THROUGH=(-m training.reproduction.stabilizers --batch-norm) ;;
        *) THROUGH=() ;;
    esac
    steps=$full
    [ "$1" != identity ] || steps=$identity
}
for arm in "${arms[@]}"; do
    choose "$arm"
    steps=100
    [ "$arm" = identity ] || steps="$(cost_as_much 100)"
    for seed in $SEEDS; do
        # One that does not survive ends with an error, and its lines are there all the same.
        train "$(config_of "$arm")" "stress-$arm-$seed" seed="$seed" log_every=1 stages.joint.steps="$steps" stages.joint.warmup_steps=10 stages.joint.learning_rate=0.032 \
            || grep '"state": "failed"' "$RUNS-stress-$arm-$seed/status.json"
    done
    higher+=("$(label_of "$arm")=$(each "$RUNS-stress-$arm")")
done
fill_block "higher rates" training.reproduction.gradient_noise "${higher[@]}"
for arm in "${arms[@]}"; do
    choose "$arm"
    for seed in $SEEDS; do
        train "$(config_of "$arm")" "stabilizer-$arm-$seed" seed="$seed" stages.joint.steps="$steps"
        score "stabilizers/$arm-$seed" "$RUNS-stabilizer-$arm-$seed/pipeline"
    done
    methods+=("$(label_of "$arm")=$(each "$SCORES/stabilizers/$arm")")
    runs+=("$(label_of "$arm")=$(each "$RUNS-stabilizer-$arm")")
done
compare all "$SCORES/stabilizers" "${methods[@]}"
# And with nothing at all, if that is among them.
against=()
for method in "${methods[@]}"; do if [[ "$method" == "full attention="* ]]; then against=("$method"); fi; done
if [ "${#against[@]}" -gt 0 ]; then
    for method in "${methods[@]}"; do if [[ "$method" != "full attention="* ]]; then against+=("$method"); fi; done
    compare "against nothing" "$SCORES/stabilizers-nothing" "${against[@]}"
fi
fill_block gradients training.reproduction.gradient_noise "${runs[@]}"
fill_block curves training.reproduction.curves "${runs[@]}" --log --every 4 --values loss:diffusion_loss loss:grad_norm heldout:diffusion/0.4 heldout:diffusion/0.8 -o "$PICTURES/stabilizers.png"
