#!/usr/bin/env bash
# An adapter that takes the checkpoint of real laps to another domain. Needs the extras `train` and
# `sim`. After an interruption the same command goes on.
set -euo pipefail
PYTHON="${PYTHON:-.venv/bin/python}"
DATA=runs/data/carracing-desert
[ -f $DATA/train/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.car_racing $DATA/train --clips 40 --first-seed 200000 --palette desert
[ -f $DATA/val/metadata.jsonl ] || "$PYTHON" -m training.data.recipes.car_racing $DATA/val --clips 12 --first-seed 300000 --palette desert
# Two one-thread processes use two cores best; the allocator keeps large tensors instead of returning them (docs/training.md).
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true
export MALLOC_TOP_PAD_=268435456 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_THRESHOLD_=4000000000
"$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "${PROCESSES:-2}" \
    -m training.train_mardini_lora training/configs/lora-carracing-desert.yaml "$@"
"$PYTHON" -m training.evaluate checkpoints/mardini-tiny-racing $DATA/val --adapter runs/lora-carracing-desert/adapter --train-clips $DATA/train \
    --steps 25 -o outputs/evaluation-lora-carracing-desert
# Unloaded, it leaves the original model, bit for bit: weights, and what they sample.
"$PYTHON" - <<'END'
import torch
from diffusers_mardini import MarDiniPipeline

pipe = MarDiniPipeline.from_pretrained("checkpoints/mardini-tiny-racing")
pipe.set_progress_bar_config(disable=True)

def weights():
    return [tensor.clone() for part in (pipe.vae, pipe.planner, pipe.transformer) for tensor in part.state_dict().values()]

def sample():
    ends = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return pipe(video=ends, frame_indices=[0, 8], num_frames=9, num_inference_steps=25, output_type="pt",
                generator=torch.Generator().manual_seed(0)).frames

before, sampled = weights(), sample()
pipe.load_lora_weights("runs/lora-carracing-desert/adapter")
adapted = sample()
pipe.unload_lora_weights()
assert not torch.equal(adapted, sampled)
assert all(map(torch.equal, weights(), before)) and torch.equal(sample(), sampled)
print(f"unloaded: {len(before)} tensors and {sampled.numel()} sampled values are what they were, bit for bit")
END
"$PYTHON" -m training.publish runs/lora-carracing-desert training/runs/lora-carracing-desert.yaml \
    outputs/evaluation-lora-carracing-desert/results.json -o outputs/mardini-tiny-racing-lora-carracing-desert
