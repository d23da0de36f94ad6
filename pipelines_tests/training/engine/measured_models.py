"""Processes that build a model in shards, save it and read it again, for `test_initial_weights.py`: a program of its
own, since it forks before any thread is there.

    python -m pipelines_tests.training.engine.measured_models FOLDER '{"processes": 2, "layers": 21}'

prints for each process the bytes of its shards, of the whole model and of its largest tensor, the most memory of its
own that the process had beyond that before while it built the model (`built`), read the checkpoint (`loaded`) and
helped to make a pipeline of it (`exported`), and whether it read what it wrote.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from diffusers_mardini.trained_window import TrainedWindow
from pipelines_tests.training.forked import fork_processes
from pipelines_tests.training.test_train_mardini import make_config, make_vae
from training.engine.checkpoint import Checkpoint, load_checkpoint
from training.engine.exporting import export_pipeline
from training.engine.models import make_models, make_scheduler
from training.engine.optimizers import learned
from training.engine.sharding import fill_from, local
from training.engine.writing import CheckpointWriter


class MostMemory:
    """Measures the most private memory of this process within the block, beyond that at its beginning: mapped files
    are the system's, which drops their pages when others need the memory."""

    def __enter__(self) -> "MostMemory":
        self.before = self.most = _private()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()
        self.bytes = max(self.most, _private()) - self.before

    def _watch(self) -> None:
        while not self.ended.is_set():
            self.most = max(self.most, _private())
            time.sleep(0.001)


def _private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def measure(folder: Path, layers: int) -> None:
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    sizes = {"num_attention_heads": 12, "attention_head_dim": 64, "mlp_dim": 3072}
    config = make_config(planner={**sizes, "num_layers": layers}, transformer={"planning_dim": 768})
    accelerator = Accelerator(cpu=True)
    make_models(make_config(), accelerator)  # imports and first uses are not the model's
    with MostMemory() as built:
        models = make_models(config, accelerator)
    weights = learned(models)
    writer = CheckpointWriter(folder / "checkpoints", accelerator, 1, False)
    writer.begin(Checkpoint(weights, weights, {}, [], {"global_step": 1}), 0)
    writer.finish()
    kept = [local(parameter).clone() for parameter in weights.values()]
    with torch.no_grad():
        for parameter in weights.values():
            local(parameter).zero_()
    rank, ranks = accelerator.process_index, accelerator.num_processes
    with MostMemory() as loaded:
        read = load_checkpoint(folder / "checkpoints" / "step-00000001", (), rank, ranks).weights
        for name, parameter in weights.items():
            fill_from(parameter, read, name)
    writer.close()
    with MostMemory() as exported:
        averages = load_checkpoint(folder / "checkpoints" / "step-00000001", (), rank, ranks).averages
        export_pipeline(
            folder / "pipeline", config, models, averages, make_vae(), make_scheduler(config),
            TrainedWindow(32, 32, 4, 10.0), accelerator,
        )  # fmt: skip
    told = {
        "whole": 4 * sum(parameter.numel() for parameter in weights.values()),
        "shards": sum(local(parameter).nbytes for parameter in weights.values()),
        "largest": 4 * max(parameter.numel() for parameter in weights.values()),
        "built": built.bytes,
        "loaded": loaded.bytes,
        "exported": exported.bytes,
        "same": all(torch.equal(local(p), tensor) for p, tensor in zip(weights.values(), kept)),
    }
    (folder / f"told-{rank}.json").write_text(json.dumps(told))


def main(folder: Path, processes: int, layers: int) -> None:
    torch.set_num_threads(1)
    children = fork_processes(processes, folder, lambda: measure(folder, layers))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        logs = [path.read_text()[-3000:] for path in sorted(folder.glob("log-*.txt"))]
        raise SystemExit(f"ended with {codes}:\n" + "\n".join(logs))
    print(json.dumps([json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(processes)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
