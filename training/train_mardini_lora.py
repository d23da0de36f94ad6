"""Trains LoRA weights of a pipeline by a YAML file with a `lora` block: `accelerate launch -m training.train_mardini_lora CONFIG`.

Everything else is `train_mardini.py`'s: data, stages, exactness, guards, pictures, exit codes. What is left is `adapter/` in the run's folder, which
`pipe.load_lora_weights` takes; `docs/lora.md` tells the rest.
"""

from collections.abc import Sequence

import torch

from training.train_mardini import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(__doc__, adapter=True, arguments=arguments)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
