#!/usr/bin/env bash
# What autoencoders with more channels keep of the robot's frames, for docs/results/robot.md. Needs the clips of training/runs/mardini-tiny-robot.sh.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
export OMP_NUM_THREADS=1
folders=()
for channels in 16 32 48; do
    folder=runs/autoencoder-robot-$channels
    [ -f $folder/config.json ] || "$PYTHON" -m training.train_autoencoder training/configs/autoencoder-robot.yaml latent_channels=$channels steps=1000 output=$folder
    folders+=("$folder")
done
"$PYTHON" -m training.reproduction.robot_choices autoencoders "${folders[@]}" --page docs/results/robot.md autoencoders
