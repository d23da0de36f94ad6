"""Files of parts of tensors: written in one pass with their digest, read by parts from as few files as hold them."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.engine.tensor_files import Part, TensorFiles, write_tensors


WHOLE = {
    "matrix": torch.arange(35.0).reshape(7, 5),
    "half": torch.arange(4, dtype=torch.bfloat16),
    "step": torch.tensor(3.0),
    "bytes": torch.arange(5, dtype=torch.uint8),
}
SHAPES = {name: list(tensor.shape) for name, tensor in WHOLE.items()}


@pytest.fixture
def files(tmp_path):
    """Two files of the tensors: the matrix in two parts, the others in one of the files."""
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    write_tensors(
        paths[0], {"matrix": Part(WHOLE["matrix"][:4], (0, 0)), "half": Part(WHOLE["half"], (0,)), "step": Part(WHOLE["step"], ())}
    )  # fmt: skip
    write_tensors(
        paths[1],
        {
            "bytes": Part(WHOLE["bytes"], (0,)),
            "matrix": Part(WHOLE["matrix"][4:], (4, 0)),
            "none": Part(torch.zeros(0, 3), (0, 0)),
        },
    )
    return paths


def test_a_written_file_is_what_its_digest_says_and_any_reader_reads_it(tmp_path):
    path = tmp_path / "x.safetensors"
    strided = WHOLE["matrix"].t()[1:]
    told = write_tensors(
        path, {**{name: Part(t, (0,) * t.ndim) for name, t in WHOLE.items()}, "t": Part(strided, (0, 0))}
    )
    contents = path.read_bytes()
    assert told == {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}
    read = load_file(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in {**WHOLE, "t": strided}.items())


def test_parts_of_several_files_are_joined(files):
    tensors = TensorFiles(files, SHAPES)
    assert set(tensors) == set(WHOLE)
    for name, tensor in WHOLE.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    for bounds in (((3, 6), (1, 4)), ((0, 4), (0, 5)), ((5, 7), (2, 3))):
        rows, columns = (slice(*axis) for axis in bounds)
        assert torch.equal(tensors.read("matrix", bounds), WHOLE["matrix"][rows, columns])
    with pytest.raises(KeyError):
        tensors["unknown"]


def test_only_the_files_that_are_needed_are_opened(files):
    files[0].unlink()
    tensors = TensorFiles(files, SHAPES, nearest=1)
    assert torch.equal(tensors.read("matrix", ((4, 7), (0, 5))), WHOLE["matrix"][4:])
    with pytest.raises(OSError):
        tensors.read("matrix", ((3, 7), (0, 5)))


def test_a_part_that_no_file_holds_is_missing_and_copies_are_taken_once(files, tmp_path):
    with pytest.raises(KeyError):
        TensorFiles(files[:1], SHAPES)["matrix"]
    write_tensors(tmp_path / "c.safetensors", {"matrix": Part(WHOLE["matrix"][:4], (0, 0))})
    twice = TensorFiles([files[0], tmp_path / "c.safetensors", files[1]], SHAPES)
    assert torch.equal(twice["matrix"], WHOLE["matrix"])


def test_files_of_whole_tensors_need_no_shapes(tmp_path):
    save_file(WHOLE, tmp_path / "old.safetensors")
    tensors = TensorFiles([tmp_path / "old.safetensors"])
    assert tensors.shapes == SHAPES and all(torch.equal(tensors[name], WHOLE[name]) for name in tensors)
