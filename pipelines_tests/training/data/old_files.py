"""Manifests and indices of latents as they were written before they became Parquet and Arrow."""

import json
from pathlib import Path

from training.data.entries import read_entries_file
from training.data.latent_shards import ChunkIndex


def as_lines(path: Path) -> Path:
    """Put JSON lines in the place of a manifest; return their path."""
    header, entries = read_entries_file(path)
    lines = [json.dumps(header), *(entry.model_dump_json(exclude_defaults=True) for entry in entries)]
    old = path.with_suffix(".jsonl")
    old.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.unlink()
    return old


def into_json(path: Path) -> None:
    """Put the index of a latent cache, `index.arrow`, into its `index.json`."""
    settings, index = path.with_name("index.json"), ChunkIndex.open(path)
    clips = {sha: [list(vars(chunk).values()) for chunk in index.chunks(sha)] for sha in index.hashes()}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"clips": clips}))
    path.unlink()
