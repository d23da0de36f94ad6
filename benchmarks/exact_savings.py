"""Time exact savings beside the forms that they replaced: `python -m benchmarks.exact_savings`.

Rotations in three passes over memory, one query of a frame where there is one key (no planning signals), and batches
gathered from latents in memory instead of the cache's files. The sides of a pair run alternately and give the same.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from diffusers_mardini.hardware import has_bfloat16_units
from diffusers_mardini.models import attention
from diffusers_mardini.models.attention import MarDiniAttention
from diffusers_mardini.models.autoencoder_patch_basis import AutoencoderPatchBasis
from diffusers_mardini.models.embeddings import _rotate_in_graphs, apply_rotary_embedding
from training.costs import Shape
from training.curriculum import draw_batch
from training.data.batches import Draw
from training.data.buckets import window_request
from training.data.manifest import make_manifest
from training.data.recipes.moving_shapes import record
from training.data.sources import open_source
from training.data.windows import LatentWindows

from .timing import Spread, alternate, describe_machine, machine_line, ratio, write_json
from .train_step import make_config


Sides = dict[str, Callable[[], Any]]  # "before" and "now"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact_savings", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mardini-tiny")
    parser.add_argument("--batch-size", type=int, default=10, help="windows of a training step")
    parser.add_argument("--clips", type=int, default=16, help="clips of the latent cache, of 32 frames")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    machine, rows = describe_machine(), []
    print(f"{options.preset}, {options.batch_size} windows, median (least to largest) of {options.repeats}")
    print(machine_line(machine))
    with tempfile.TemporaryDirectory() as folder:
        for name, sides in pairs(options.preset, options.batch_size, options.clips, Path(folder)):
            seconds = alternate(sides, options.repeats)
            row = {
                "name": name,
                "milliseconds": 1e3 * Spread.of(seconds["now"]).median,
                "times as fast": ratio(seconds["before"], seconds["now"]),
            }
            rows.append(row)
            print(f"{name:<72} {row['milliseconds']:9.2f} ms, {row['times as fast']:.2f} times as fast", flush=True)
    write_json(options.output, {"machine": machine, "rows": rows})
    return rows


def pairs(preset: str, batch_size: int, clips: int, folder: Path):
    """Yield names and sides."""
    config = make_config(batch_size, "muon", preset)
    stage = config.stages[0]
    shape = Shape.of(config, stage, stage.num_frames - 2)
    model = shape.training_model(device="cpu")
    batch = shape.batch_of("cpu", torch.float32)
    rows, columns = (side // model.transformer.config.patch_size for side in batch.latents.shape[-2:])
    heads, head_dim = (model.transformer.config[name] for name in ("num_attention_heads", "attention_head_dim"))
    tables = model.transformer.rope(stage.num_frames, rows, columns, torch.device("cpu"))
    queries = torch.randn(batch_size, stage.num_frames, rows * (columns + 1), heads, head_dim, requires_grad=True)
    grad = torch.randn_like(queries)
    for what, turns in (("forward", False), ("forward and backward", True)):
        yield (
            f"rotation of the transformer's queries, {what}",
            {
                "before": lambda turns=turns: _rotate(_rotate_in_graphs, queries, tables, grad if turns else None),
                "now": lambda turns=turns: _rotate(apply_rotary_embedding, queries, tables, grad if turns else None),
            },
        )
    for number_format in ("float32", "bf16 autocast") if has_bfloat16_units(torch.device("cpu")) else ("float32",):
        bf16 = number_format != "float32"
        learn = _learning(lambda: model(batch)["loss"], model, bf16)
        yield f"a joint step, {number_format}: rotations", {"before": _with_rotations_of_before(learn), "now": learn}

        def unconditional() -> torch.Tensor:
            return model.transformer(batch.latents, 500, None, batch.reference_mask, batch.num_masked_frames).sample

        tables_of_queries = model.transformer.cross_rope(rows, columns, 1, 1, torch.device("cpu"))[:2]
        learn = _learning(lambda: unconditional().square().mean(), model, bf16)
        sides = {"before": _with_all_queries(learn, tables_of_queries), "now": learn}
        yield f"a step without planning signals, {number_format}: one query of a frame", sides
        see = torch.no_grad()(_autocast(unconditional, bf16))
        sides = {"before": _with_all_queries(see, tables_of_queries), "now": see}
        yield f"an evaluation without planning signals, {number_format}: the same", sides
    yield "drawing a batch: latents in memory", _draws(config, clips, folder)


def _rotate(rotation: Callable, queries: torch.Tensor, tables: Sequence[torch.Tensor], grad: torch.Tensor | None):
    with torch.set_grad_enabled(grad is not None):
        rotated = rotation(queries, *tables)
    if grad is not None:
        rotated.backward(grad)
        queries.grad = None


def _autocast(call: Callable[[], torch.Tensor], bf16: bool) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return call()

    return run


def _learning(loss: Callable[[], torch.Tensor], model: torch.nn.Module, bf16: bool) -> Callable[[], None]:
    def run() -> None:
        _autocast(loss, bf16)().backward()
        model.zero_grad(set_to_none=True)

    return run


def _with_rotations_of_before(call: Callable[[], Any]) -> Callable[[], Any]:
    def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return _rotate_in_graphs(states.float(), cos, sin).type_as(states)

    def run() -> Any:
        with patch.object(attention, "apply_rotary_embedding", rotate):
            return call()

    return run


def _with_all_queries(call: Callable[[], Any], tables: Sequence[torch.Tensor]) -> Callable[[], Any]:
    """Let every token of a frame ask, though there is one key."""
    one = MarDiniAttention.forward

    def attend(attn: MarDiniAttention, hidden_states: torch.Tensor, rotary_emb: Any, *rest: Any) -> torch.Tensor:
        if attn.is_cross_attention:
            hidden_states = hidden_states.expand(-1, -1, len(tables[0]), -1).contiguous()
            rotary_emb = tables
        return one(attn, hidden_states, rotary_emb, *rest)

    def run() -> Any:
        with patch.object(MarDiniAttention, "forward", attend):
            return call()

    return run


def _draws(config: Any, clips: int, folder: Path) -> Sides:
    size, stage = config.data.size, config.stages[0]
    record(folder / "clips", clips, 32, size if isinstance(size, int) else size[0])
    source = open_source(folder / "clips")
    entries = make_manifest(source, folder / "manifest.jsonl").entries
    vae = AutoencoderPatchBasis().eval()
    request = window_request(config, stage)
    sides = {}
    for side in ("before", "now"):
        windows = LatentWindows.build(source, entries, [request], vae, config.data.planner_downscale, folder / "cache")
        if side == "now":
            windows.keep_on_device(torch.device("cpu"), 1e9)
        draw = Draw(0, stage.name, 0, 0, stage.batch_size, stage.batch_size)
        sides[side] = lambda windows=windows: draw_batch(stage, request, windows, 1000, draw)
    return sides


if __name__ == "__main__":
    main()
