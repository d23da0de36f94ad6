"""Files of published networks: found, checked, and never trusted more than arrays need."""

import hashlib
import pickle
import sys

import numpy as np
import pytest
import torch

from training.evaluation.networks.published_files import (
    PublishedFile,
    find_file,
    missing,
    read_numpy_pickle,
    sha256,
    user_cache,
)


CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def published(**changes) -> PublishedFile:
    return PublishedFile(
        **{"name": "net.pth", "origin": "https://example.org/net.pth", "sha256": DIGEST[:8], **changes}
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "net.pth").write_bytes(CONTENT)
    return tmp_path


def test_a_file_is_found_in_the_users_folder_in_its_package_or_in_the_hubs_cache(folder, monkeypatch):
    assert find_file(published(), folder) == folder / "net.pth"
    package = folder / "carrier_of_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('importing would run code, and is not needed')")
    (package / "net.bin").write_bytes(CONTENT)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    assert find_file(published(package="carrier_of_weights", inside="net.bin")) == package / "net.bin"
    cached = folder / "hub" / "checkpoints" / "net.pth"
    assert find_file(published()) is None
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT)
    assert find_file(published()) == cached


def test_a_file_with_another_digest_is_refused_whoever_knows_it(folder):
    with pytest.raises(ValueError, match=f"{DIGEST}, but deadbeef was expected.*example.org"):
        find_file(published(sha256="deadbeef"), folder)
    unknown = published(sha256="")
    assert find_file(unknown, folder, {"net.pth": DIGEST.upper()}) == folder / "net.pth"
    with pytest.raises(ValueError, match="but 00ff was expected"):
        find_file(unknown, folder, {"net.pth": "00FF"})
    assert sha256(folder / "net.pth") == DIGEST


def test_what_to_bring_is_said(tmp_path):
    text = missing("FID", [published()], tmp_path)
    assert "'net.pth' (https://example.org/net.pth)" in text and str(tmp_path) in text
    assert "--weights" in missing("FID", [published()], None)


def test_arrays_in_plain_containers_are_read(tmp_path):
    packed = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": [1, (2.5, "c")]}
    (tmp_path / "net.ckpt").write_bytes(pickle.dumps(packed))
    read = read_numpy_pickle(tmp_path / "net.ckpt")
    np.testing.assert_array_equal(read["a"]["kernel"], packed["a"]["kernel"])
    assert read["b"] == [1, (2.5, "c")]


class Malice:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [eval, np.load, np.save])
def test_a_pickle_that_asks_for_anything_else_runs_nothing(tmp_path, call):
    target = tmp_path / "made_by_the_pickle"
    arguments = [f"open({str(target)!r}, 'w')"] if call is eval else [str(target), [1]]
    (tmp_path / "net.ckpt").write_bytes(pickle.dumps({"kernel": Malice(call, *arguments)}))
    with pytest.raises(ValueError, match="not a pickle of numpy arrays alone: it asks for"):
        read_numpy_pickle(tmp_path / "net.ckpt")
    assert not list(tmp_path.glob("made_by_the_pickle*"))


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1])[:-2]])
def test_what_is_no_pickle_is_refused(tmp_path, content):
    (tmp_path / "net.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match="not a pickle"):
        read_numpy_pickle(tmp_path / "net.ckpt")


def test_the_users_cache_follows_the_custom_of_the_system(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "diffusers_mardini"
