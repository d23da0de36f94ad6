"""Clips at URLs are those of a local copy, and cost the bytes that they have."""

import json
import multiprocessing
import pickle
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from fsspec.implementations.memory import MemoryFileSystem

from diffusers_mardini.video_io import iterate_frames, write_video
from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.data.remote_storage import STORAGES, Storage, memory, web
from pipelines_tests.training.data.test_archives import pack
from pipelines_tests.training.data.test_latents import tiny_vae
from pipelines_tests.training.data.test_prepare import REQUEST, check_whole, job_of, run
from pipelines_tests.training.data.test_windows import run as draw
from pipelines_tests.training.test_train_mardini import make_config, make_vae
from training.data import manifest, prepare, remote
from training.data.clip_lists import ClipRow, write_clip_list
from training.data.clips import find_clips, load_clip
from training.data.manifest import make_manifest
from training.data.preparation import prepare_data
from training.data.remote_errors import RemoteError
from training.data.sources import open_source, source_exists
from training.data.windows import PixelWindows


CLIPS = 4  # of a shard
FOOTER = 2 * 65536  # most bytes that finding out what a table holds may cost


def make_videos(folder: Path, first: int) -> Path:
    for index in range(first, first + CLIPS):
        write_clip(folder / "day" / f"{index}.mp4", noise(5 + index, 96, 128, seed=index), fps=10)
        (folder / "day" / f"{index}.json").write_text('{"caption": "noise"}')
    return folder


def make_table(path: Path, videos: Path, **settings) -> Path:
    files = sorted(videos.rglob("*.mp4"))
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    columns = {
        "video": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "thumbnail": pa.array([noise(1, 400, 400, seed).tobytes() for seed in range(len(files))], pa.binary()),
        "episode": [index // 2 for index in range(len(files))],
    }
    features = {"video": {"_type": "Video"}, "thumbnail": {"_type": "Value"}, "episode": {"_type": "Value"}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=CLIPS, **settings)
    return path


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Shards of every kind: what lies in storage, too."""
    work, shards = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("shards")
    for shard in range(2):
        videos = make_videos(work / f"videos{shard}", CLIPS * shard)
        for suffix in ("tar", "zip"):
            pack(videos, shards / f"train-{shard}.{suffix}")
        make_table(shards / f"train-{shard}.parquet", videos)
    # Pages of one row; by default a row group's videos are one page of a dictionary.
    make_table(shards / "paged.parquet", videos, use_dictionary=False, write_batch_size=1, data_page_size=1)
    for seed, name in enumerate(("x", "y")):
        write_video(work / "pictures" / name, noise(6, 48, 48, seed), fps=1)
    pack(work / "pictures", shards / "pictures.tar")
    return shards


@pytest.fixture(params=STORAGES, scope="module")
def storage(request, local) -> Iterator[Storage]:
    with STORAGES[request.param](local) as found:
        yield found


@pytest.fixture
def in_memory(local) -> Iterator[Storage]:
    with memory(local, "other-bucket") as found:
        yield found


@pytest.fixture
def on_the_web(tmp_path, local) -> Iterator[Storage]:
    for path in local.iterdir():
        (tmp_path / "www" / path.name).parent.mkdir(exist_ok=True)
        (tmp_path / "www" / path.name).write_bytes(path.read_bytes())
    with web(tmp_path / "www") as found:
        yield found


def frames(source, key: str) -> np.ndarray:
    return np.stack([frame for _, frame in iterate_frames(source.open(key), source.fps(key))])


@pytest.mark.parametrize("name", ["train-{0..1}.tar", "train-1.zip", "train-{0..1}.parquet", "pictures.tar"])
def test_clips_at_a_url_are_those_of_a_local_copy(storage, local, tmp_path, name):
    there, here = (open_source(f"{base}/{name}", fps=5) for base in (storage.url, local))
    assert source_exists(there.spec) and list(there.keys()) == list(here.keys())
    found, expected = (
        make_manifest(source, tmp_path / f"{index}.parquet", workers=2) for index, source in enumerate((there, here))
    )
    assert [replaced(entry) for entry in found.entries] == [replaced(entry) for entry in expected.entries]
    assert len(found.ok) == len(found.entries) >= 2
    for entry in found.ok:
        assert there.stamp(entry.key) == entry.stamp and there.recording(entry.key) == here.recording(entry.key)
        assert (frames(there, entry.key) == frames(here, entry.key)).all()


def replaced(entry):
    return entry.model_copy(update={"stamp": None})


def test_a_clip_of_a_tar_costs_its_own_bytes(storage, local, tmp_path):
    name = "train-{0..1}.tar"
    whole = sum((local / f"train-{shard}.tar").stat().st_size for shard in range(2))
    storage.spent()
    source = open_source(f"{storage.url}/{name}", manifests=tmp_path)
    headers = storage.spent()
    assert headers < whole / 10 and headers <= 2 * (CLIPS + 2) * 8192 + 2 * 10240
    # What a shard holds is kept: nothing is read to open it again.
    source = open_source(f"{storage.url}/{name}", manifests=tmp_path)
    assert storage.spent() == 0
    key = list(source.keys())[3]
    with tarfile.open(local / key.split("/")[0]) as packed:
        size = packed.getmember(key.partition("/")[2]).size
    assert len(frames(source, key)) and storage.spent() == size < whole / 4
    # To be hashed and decoded, every clip is read once.
    make_manifest(source, tmp_path / "manifest.parquet", workers=2)
    assert storage.spent() < whole


@pytest.mark.parametrize("name", ["train-1.parquet", "paged.parquet"])
def test_a_row_of_a_table_costs_the_column_up_to_it(storage, local, tmp_path, name):
    path = local / name
    storage.spent()
    source = open_source(f"{storage.url}/{name}", manifests=tmp_path)
    assert storage.spent() <= FOOTER
    open_source(f"{storage.url}/{name}", manifests=tmp_path)
    assert storage.spent() == 0
    videos = pq.ParquetFile(path).metadata.row_group(0).column(0).total_compressed_size
    first = len(source.open(f"{name}/row-0"))
    spent = storage.spent()
    assert spent <= (first + 2**18 if name == "paged.parquet" else videos) + FOOTER < path.stat().st_size / 2
    for row in range(1, CLIPS):
        source.open(f"{name}/row-{row}")
    # It goes on from there, and never reads the thumbnails.
    assert spent + storage.spent() <= videos + 2**16 + FOOTER < path.stat().st_size / 2


def test_a_table_that_is_read_again_begins_at_the_row_group(in_memory, local):
    source, copy = open_source(f"{in_memory.url}/train-0.parquet"), open_source(local / "train-0.parquet")
    keys = list(source.keys())
    for key in (keys[2], keys[0], keys[3], keys[3], keys[1]):
        assert source.open(key) == copy.open(key)
    assert list(open_source(f"{in_memory.url}/train-0.parquet#thumbnail").keys()) == keys


def test_small_values_are_read_by_the_rows_too(tmp_path):
    videos = make_videos(tmp_path / "videos", 0)
    rows = [file.read_bytes() for file in sorted(videos.rglob("*.mp4"))]
    pq.write_table(pa.table({"mp4": [*rows, None, b"no video"]}), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    source = open_source(tmp_path / "{a,b}.parquet")
    assert [source.open(f"a.parquet/row-{row}") for row in range(CLIPS)] == rows
    reasons = {entry.key: entry.reason for entry in make_manifest(source, tmp_path / "m.parquet").left_out}
    assert set(reasons) == {"a.parquet/row-4", "a.parquet/row-5", "b.parquet"}
    assert "holds no video" in reasons["a.parquet/row-4"] and "no whole Parquet file" in reasons["b.parquet"]
    with pytest.raises(ValueError, match="has no column 'mp3' of videos; its columns are mp4"):
        open_source(f"{tmp_path}/a.parquet#mp3")
    (tmp_path / "b.parquet").unlink()
    assert len(list(open_source(tmp_path / "a.parquet").keys())) == CLIPS + 2


def test_a_folder_of_pictures_in_a_tar_is_one_request(in_memory, local):
    source = open_source(f"{in_memory.url}/pictures.tar", fps=5)
    in_memory.reads.clear()
    frames(source, "pictures.tar/x")
    assert len(in_memory.reads) == 1


def test_a_large_clip_is_read_by_blocks(in_memory, local, monkeypatch):
    monkeypatch.setattr(remote, "WHOLE", 1000)
    monkeypatch.setattr(remote, "_BLOCK", 4096)
    source = open_source(f"{in_memory.url}/train-1.tar")
    key = list(source.keys())[-1]
    section = source.open(key)
    in_memory.spent()
    with section.open() as file:
        file.seek(section.length - 10)
        file.read()
        assert in_memory.spent() <= 4096
    assert (frames(source, key) == frames(open_source(local / "train-1.tar"), key)).all()


def test_files_are_named_one_by_one_by_a_pattern_or_by_their_folder(in_memory, local, tmp_path, capsys):
    base = in_memory.url
    for name in ("a/0.tar", "a/1.tar", "a/readme.md", "a/b/2.tar", "a/.hidden", "a/stray.mp4", "t/0.parquet"):
        suffix = name.rpartition(".")[2]
        path = local / f"train-0.{suffix}"
        in_memory.put(name, path.read_bytes() if path.exists() else b"text")
    folder = open_source(f"{base}/a")
    assert {key.split("/")[0] for key in folder.keys()} == {"0.tar", "1.tar"}
    assert "stray.mp4" in folder.left_out() and any(".md" in note for note in folder.notes())
    for spec in (f"{base}/a/*.tar", f"{base}/a/[01].tar", f"{base}/a/{{0,1}}.tar"):
        assert list(open_source(spec).keys()) == list(folder.keys())
    assert len(list(open_source(f"{base}/t").keys())) == CLIPS
    for spec, message in (
        (f"{base}/*/0.tar/", "nothing at"),
        (f"{base}/none", "nothing at"),
        (f"{base}/a/*.zip", "nothing at"),
        (f"{base}/a/readme.md", "nothing at|names no clips"),
        (f"{base}/{{a,t}}/0.*", "the same name|names no clips"),
        (f"{base}/a/0.tar#video", "names no clips"),
        (f"{base}/a/0.tar.gz", "compressed as a whole"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(spec)


def test_programs_take_urls(in_memory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    url = f"{in_memory.url}/train-0.tar"
    monkeypatch.setattr(sys, "argv", ["manifest", url, "-o", "m.parquet", "--workers", "1"])
    assert manifest.main() == 0 and f"{CLIPS} of {CLIPS} clips" in capsys.readouterr().out
    found = find_clips(url)
    assert len(found) == CLIPS and load_clip(found[1], (16, 16))[0].shape == (7, 3, 16, 16)
    write_clip_list(Path("list.jsonl"), [ClipRow(url, "train-0.tar/day/2.mp4", 1, 4)])
    (entry,) = make_manifest(open_source("list.jsonl", manifests=Path("lists")), Path("lists/m.parquet")).ok
    assert entry.num_frames == 4 and list(Path("lists/contents").glob("*.json"))


def test_a_preparation_is_resumed_by_what_storage_says_of_its_shards(in_memory, local, tmp_path, monkeypatch):
    in_memory.put("prep/0.tar", (local / "train-0.tar").read_bytes())
    in_memory.put("prep/1.tar", (local / "train-1.tar").read_bytes())
    url, out = f"{in_memory.url}/prep", tmp_path / "out"
    outcomes = run(job_of(url, out))
    assert [each.usable for each in outcomes] == [3, 1, 3, 1]
    check_whole(url, out)
    # Again: storage is only asked what it has.
    in_memory.spent()
    assert run(job_of(url, out)) == outcomes and in_memory.spent() == 0
    # A shard that is written anew is read again, and no other.
    write_clip(tmp_path / "more" / "day" / "0.mp4", noise(8, 96, 128, seed=50), fps=10)
    new = pack(tmp_path / "more", tmp_path / "0.tar").read_bytes()
    in_memory.put("prep/0.tar", new)
    run(job_of(url, out))
    assert in_memory.spent() <= 3 * len(new)
    check_whole(url, out)


def test_a_run_finds_what_was_prepared_from_a_url(in_memory, tmp_path):
    make_vae().save_pretrained(tmp_path / "vae")
    url, out = f"{in_memory.url}/train-0.tar", tmp_path / "out"
    data = {"train": url, "size": 32, "workers": 0, "manifests": out / "manifests", "cache": out / "latents"}
    config = make_config(vae=str(tmp_path / "vae"), data=data)
    (tmp_path / "run.yaml").write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    assert prepare.main([url, str(out), "--config", str(tmp_path / "run.yaml"), "--workers", "1"]) == 0
    in_memory.spent()
    windows = prepare_data(config.for_processes(1), make_vae(), tmp_path, Accelerator(cpu=True)).train
    assert len(windows.entries) == CLIPS and in_memory.spent() == 0


def test_windows_of_pixels_are_those_of_a_local_copy(in_memory, local, tmp_path):
    drawn = []
    for index, base in enumerate((in_memory.url, local)):
        source = open_source(f"{base}/train-0.tar")
        entries = make_manifest(source, tmp_path / f"{index}.parquet").ok
        windows = PixelWindows(source, entries, {(16, 16)}, tiny_vae(), 2)
        drawn.append(draw(windows, REQUEST, step=3))
    assert drawn[0][0] == drawn[1][0] and torch.equal(drawn[0][1][0], drawn[1][1][0])


def test_a_forked_process_makes_its_own_file_system(on_the_web, local):
    url = f"{on_the_web.url}/train-{{0..1}}.tar"
    here = open_source(local / "train-{0..1}.tar")
    source, key = open_source(url), "train-1.tar/day/5.mp4"
    expected = frames(here, key)
    assert (frames(source, key) == expected).all()  # this process has its own by now
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert (pool.apply_async(frames, (source, key)).get(60) == expected).all()


@pytest.mark.slow
def test_processes_prepare_what_lies_at_a_url(on_the_web, tmp_path):
    url = f"{on_the_web.url}/train-{{0..1}}.tar"
    job = replace(job_of(url, tmp_path / "out"), requests=(), load_vae=None)
    outcomes = run(job, workers=2)
    assert [each.state for each in outcomes] == ["done"] * 4 and sum(each.usable for each in outcomes) == 2 * CLIPS
    assert len(list((tmp_path / "out/manifests/contents").glob("*.json"))) == 2


def test_an_opened_clip_can_be_sent_before_it_is_read(in_memory):
    section = open_source(f"{in_memory.url}/train-0.tar").open("train-0.tar/day/0.mp4")
    assert len(pickle.dumps(section)) < 1000 and pickle.loads(pickle.dumps(section)).read() == section.read()


def test_what_urls_must_not_have_is_refused_without_being_repeated(monkeypatch):
    for url, message in (
        ("ftp://host/a.tar", "no reader for 'ftp://'"),
        ("reference://x/a.tar", "no reader for 'reference://'"),
        ("simplecache::s3://bucket/a.tar", "chains several protocols"),
        ("zip://a.mp4::https://host/a.zip", "chains several protocols"),
        ("s3://AKIA:topsecret@bucket/a.tar", "names a user or password"),
        ("https://me:topsecret@host/a.tar", "names a user or password"),
        ("https://host/a.tar?X-Amz-Signature=topsecret", "followed by a query"),
        ("https://host/shards/", "web servers have no lists"),
        ("https://host/*.tar", "web servers have no lists"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            open_source(url)
        assert "topsecret" not in str(error.value)


@pytest.mark.parametrize(
    "url, package, extra",
    [("gs://bucket/a.tar", "gcsfs", "remote"), ("s3://bucket/a.tar", "s3fs", "remote"),
     ("https://host/a.tar", "aiohttp", "remote"), ("hf://datasets/a/b/c.tar", "huggingface_hub", "train")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(monkeypatch, url, package, extra):
    def missing(*_, **__):
        raise ImportError(f"Install {package}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(ValueError, match=rf"without {package}: pip install \"\.\[{extra}\]\""):
        open_source(url)


def test_missing_and_private_files_are_named(storage, monkeypatch):
    with pytest.raises(RemoteError, match="there is nothing at '.*none.tar'"):
        open_source(f"{storage.url}/none.tar")
    if storage.url.startswith("http"):
        with pytest.raises(RemoteError, match="no permission to read '.*/private/a.tar'"):
            open_source(f"{storage.url}/private/a.tar")
    if storage.url.startswith("s3"):
        with pytest.raises(RemoteError, match="there is nothing at 's3://other-bucket/\\*.tar'"):
            open_source("s3://other-bucket/*.tar")


@pytest.mark.parametrize("kind", ["PermissionError", "NoCredentialsError"])
def test_missing_permissions_say_where_credentials_come_from(monkeypatch, kind):
    class NoCredentialsError(Exception):
        pass

    class Refusing(MemoryFileSystem):
        def info(self, path, **_):
            raise {"PermissionError": PermissionError, "NoCredentialsError": NoCredentialsError}[kind]("Access Denied")

    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: Refusing(skip_instance_cache=True))
    with pytest.raises(RemoteError, match="no permission to read 's3://bucket/a.tar'.*AWS_PROFILE.*FSSPEC_S3_ANON"):
        open_source("s3://bucket/a.tar")


def test_a_signed_address_in_an_error_is_not_shown(monkeypatch):
    class Failing(MemoryFileSystem):
        def info(self, path, **_):
            raise OSError("409 for url https://cdn.example/x?X-Amz-Signature=topsecret&b=1 (Request ID 1)")

    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: Failing(skip_instance_cache=True))
    with pytest.raises(
        RemoteError, match=r"cannot be read \(OSError: 409 for url https://cdn.example/x\?\.\.\. "
    ) as e:
        open_source("hf://datasets/a/b/c.tar")
    assert e.value.__cause__ is None and e.value.__suppress_context__


def test_a_failed_connection_is_tried_again_and_nothing_else(on_the_web, monkeypatch):
    monkeypatch.setattr(remote, "_WAITS", (0.01, 0.01))
    source = open_source(f"{on_the_web.url}/flaky/train-0.tar")
    on_the_web.flaked = False
    assert len(frames(source, "train-0.tar/day/0.mp4")) == 5 and on_the_web.flaked
    with pytest.raises(RemoteError, match="'http://127.0.0.1:1/a.tar' cannot be read"):
        open_source("http://127.0.0.1:1/a.tar")


def test_a_server_without_ranges_is_not_asked_for_whole_files(local):
    with web(local, ranges=False) as found, pytest.raises(RemoteError, match="does not answer byte ranges"):
        open_source(f"{found.url}/train-0.tar")


def test_a_shard_that_became_shorter_is_not_read_as_if_whole(in_memory, local):
    source = open_source(f"{in_memory.url}/train-0.tar")
    in_memory.put("train-0.tar", (local / "train-0.tar").read_bytes()[:20000])
    with pytest.raises(RemoteError, match="it has changed since it was opened"):
        source.open(list(source.keys())[-1]).read()


def test_faults_of_storage_are_tried_again_and_damage_is_not(in_memory, local, tmp_path, monkeypatch):
    data = (local / "train-0.tar").read_bytes()
    in_memory.put("cut.tar", data[: len(data) // 2])
    cut = open_source(f"{in_memory.url}/cut.tar")
    assert "cut.tar" in cut.left_out() or any("ends within" in why for why in cut.left_out().values())
    source = open_source(f"{in_memory.url}/train-0.tar")
    real = remote.read_range

    def failing(*arguments):
        raise RemoteError("the network is down")

    monkeypatch.setattr(remote, "read_range", failing)
    left_out = make_manifest(source, tmp_path / "m.parquet").left_out
    assert len(left_out) == CLIPS and {entry.reason for entry in left_out} == {"the network is down"}
    with pytest.raises(RemoteError, match="the network is down"):
        open_source(f"{in_memory.url}/train-0.tar", manifests=tmp_path)
    monkeypatch.setattr(remote, "read_range", real)
    assert len(make_manifest(source, tmp_path / "m.parquet").ok) == CLIPS


class Hub(MemoryFileSystem):
    """As much of the Hub's file system as sources use."""

    protocol = "hf"
    store: dict = {}
    pseudo_dirs = [""]
    asked: list = []

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("hf://").strip("/")

    def glob(self, path, **options):
        self.asked.append((path, options))
        return super().glob(path, detail=options["detail"])

    def open(self, path, mode="rb", cache_type=None, size=None, **options):
        if mode == "rb":
            self.asked.append((path, cache_type, size))
        return super().open(path, mode, **options)


def test_names_on_the_hub_are_those_of_its_file_system(local, monkeypatch):
    hub = Hub(skip_instance_cache=True)
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme, **_: {"hf": hub}[scheme])
    data = (local / "train-0.parquet").read_bytes()
    hub.store.clear()
    hub.pipe_file("hf://datasets/someone/clips@main/data/train-0.parquet", data)
    source = open_source("hf://datasets/someone/clips@main/data/*.parquet")
    key = "train-0.parquet/row-1"
    assert source.open(key) == open_source(local / "train-0.parquet").open(key)
    pattern, *reads = hub.asked
    assert pattern == ("hf://datasets/someone/clips@main/data/*.parquet", {"detail": True, "expand_info": False})
    url = "hf://datasets/someone/clips@main/data/train-0.parquet"
    assert reads and set(reads) == {(url, "none", len(data))}


def test_the_command_prepares_what_lies_at_a_url(on_the_web, tmp_path, capsys):
    arguments = [f"{on_the_web.url}/train-0.tar", str(tmp_path / "out"), "--workers", "1"]
    assert prepare.main(arguments) == 0
    assert f"{CLIPS} of {CLIPS} clips" in capsys.readouterr().out
    assert prepare.main([f"{on_the_web.url}/none.tar", str(tmp_path / "out")]) == 2
    assert "there is nothing at" in capsys.readouterr().err
