"""Train LoRA weights of a pipeline by a YAML file with a `lora` block: `accelerate launch -m
training.train_mardini_lora CONFIG`.

Writes `adapter/` in the run's folder, which `pipe.load_lora_weights` takes; see `docs/lora.md`. Data, stages, guards
and exit codes are those of `train_mardini.py`.
"""

from collections.abc import Sequence

import torch

from training.train_mardini import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    run_command(__doc__, adapter=True, arguments=arguments)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
