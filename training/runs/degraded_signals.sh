#!/usr/bin/env bash
# How much plan is needed: signals made worse, attention and resolution of the planner restricted, a plan of generated frames. For docs/results/degraded_signals.md.
# Another checkpoint, with the page left alone: CHECKPOINT=runs/mine/pipeline OUT=outputs/mine bash training/runs/degraded_signals.sh
# After an interruption the same command goes on; so it does with more values, such as --noise 0.5 1 2 4 8.
own=checkpoints/mardini-tiny-carracing results=degraded-signals page=docs/results/degraded_signals.md
source "$(dirname "$0")/pages.inc.sh"
fill training.reproduction.degraded_signals "$CHECKPOINT" "$CARRACING/val" -o "$OUT" --seeds 0 1 --chart "$PICTURES/degraded_signals.png" --summary "$PICTURES/plan_needed.png" "$@"
# Compared with signals dropped: the use that is left.
ours="ours, 25 steps"
against=("signals dropped=$OUT:$ours, planning signal dropped" "noise, 4 times=$OUT:$ours, planning signals with noise 4 times their deviation")
against+=("90% of the tokens dropped=$OUT:$ours, 90% of the planning tokens dropped")
for side in 2 4; do against+=("means of ${side}x$side tokens=$OUT:$ours, planning signals averaged over ${side}x$side tokens"); done
for reach in 0 1 2 4; do against+=("attention over $reach frames each way=$OUT:$ours, planner attends $reach frames each way"); done
for factor in 1 4 8; do against+=("planner at a side ${factor} times smaller=$OUT:$ours, planner sees a side $factor times smaller"); done
against+=("plan of generated frames=$OUT:$ours, plan of generated frames")
against+=("planning signals of another window=$OUT:$ours, planning signals of another window")
compare "signals dropped" "$OUT" "${against[@]}"
