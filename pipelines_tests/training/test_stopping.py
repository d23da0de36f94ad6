"""Requests to stop, on every system and while clips are prepared."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from diffusers_mardini import AutoencoderPatchBasis
from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.test_train_mardini import data_fields, make_config, make_run, make_vae, write_clips
from training import files
from training.data.latents import build_latent_cache
from training.data.manifest import make_manifest
from training.data.preparation import prepare_data
from training.data.sources import VideoFolder, open_source
from training.engine.checkpoint import newest_checkpoint
from training.files import flush
from training.stopping import SIGNALS, Stopped, StopRequest
from training.train_mardini import train


ROOT = Path(__file__).resolve().parents[2]


class StopsAfter:
    """A reason to stop from the `calls`-th question on."""

    def __init__(self, calls: int):
        self.calls = calls

    def __call__(self) -> str | None:
        self.calls -= 1
        return "signal SIGTERM" if self.calls <= 0 else None


def test_the_programs_are_imported_where_signals_calls_and_modules_do_not_exist(tmp_path):
    """Those that Windows lacks; what others import is imported before they are taken away."""
    programs = (
        "import training.train_mardini, training.train_autoencoder, training.fit, training.evaluate, training.plan\n"
        "import training.stopping, diffusers_mardini.streaming, diffusers_mardini.cli; from pathlib import Path\n"
    )
    program = (
        f"{programs}import os, signal, sys\n"
        "for name in [n for n in sys.modules if n.split('.')[0] in ('training', 'diffusers_mardini')]: "
        "del sys.modules[name]\n"
        "del signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGKILL, os.fork, os.killpg, os.getuid, os.geteuid\n"
        "sys.modules |= dict.fromkeys(['fcntl', 'resource', 'pwd', 'grp', 'termios'])\n"
        f"{programs}"
        "with training.stopping.StopRequest(Path('.')) as stop: print(stop.reason, [s.name for s in "
        "training.stopping.SIGNALS])\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.stdout == "None ['SIGTERM', 'SIGINT']\n", result.stderr[-2000:]


def test_signals_are_not_asked_for_outside_of_the_main_thread(tmp_path):
    reasons = []

    def work():
        with StopRequest(tmp_path) as stop:
            (tmp_path / "stop").touch()
            reasons.append(stop.reason)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reasons == [f"the file {tmp_path / 'stop'}"]


def test_a_handler_that_is_not_pythons_can_be_put_back(tmp_path):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with StopRequest(tmp_path) as stop:
        stop._previous[SIGNALS[0]] = None  # as `signal.signal` says of a handler in C
    assert signal.getsignal(SIGNALS[0]) == signal.SIG_DFL
    signal.signal(SIGNALS[0], before[SIGNALS[0]])
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_folders_need_not_be_flushed_where_the_system_cannot(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"1")
    for name in ("nt", os.name):
        monkeypatch.setattr(os, "name", name)
        flush(tmp_path), flush(tmp_path / "file")
        monkeypatch.undo()

    def refuse(_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    flush(tmp_path)  # as on some network file systems
    with pytest.raises(OSError):
        flush(tmp_path / "file")


def test_a_run_is_saved_and_resumed_where_files_are_flushed_as_on_windows(tmp_path, monkeypatch):
    """No folder can be opened there, and no file flushed that was opened for reading alone."""
    fcntl = pytest.importorskip("fcntl")
    flushed = []

    def refuse_folders(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return os.open(path, *arguments, **options)

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR) == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flushed.append(os.fsync(descriptor))

    windows = SimpleNamespace(**{**vars(os), "name": "nt", "open": refuse_folders, "fsync": fsync})
    monkeypatch.setattr(files, "os", windows)
    with pytest.raises(OSError):
        fsync(os.open(__file__, os.O_RDONLY))
    config = make_config(checkpoint_every=1)
    with pytest.raises(Stopped):
        run = make_run(tmp_path, config)
        run.train(StopAtOnce(run.folder))
    assert flushed and newest_checkpoint(tmp_path / "checkpoints") is not None
    assert make_run(tmp_path, config).train().is_dir()


class StopAtOnce(StopRequest):
    """A reason to stop from the beginning."""

    reason = "a test"


def test_decoding_stops_between_clips_and_keeps_what_was_decoded(tmp_path):
    source = open_source(write_clips(tmp_path / "clips"))
    with pytest.raises(Stopped, match="SIGTERM"):
        make_manifest(source, tmp_path / "m.parquet", 1, StopsAfter(2))
    decoded = (tmp_path / ".m.jsonl.part").read_text().splitlines()
    assert len(decoded) >= 2 and not (tmp_path / "m.parquet").exists()  # a header and clips
    assert len(make_manifest(source, tmp_path / "m.parquet").ok) == 3 and not (tmp_path / ".m.jsonl.part").exists()
    make_manifest(source, tmp_path / "m.parquet", stop=StopsAfter(0))  # there is nothing to do, and so nothing to stop


def test_clips_that_have_not_begun_are_not_decoded_after_a_signal(tmp_path):
    for number in range(12):
        write_clip(tmp_path / "clips" / f"{number}.mp4", noise(40, 64, 64, number), fps=20)
    with pytest.raises(Stopped):  # asked while the first is decoded; eight wait behind it
        make_manifest(open_source(tmp_path / "clips"), tmp_path / "m.parquet", 2, StopsAfter(1))
    assert 1 < len((tmp_path / ".m.jsonl.part").read_text().splitlines()) < 13


def test_encoding_stops_between_clips_and_keeps_what_was_encoded(tmp_path, capsys):
    source = open_source(write_clips(tmp_path / "clips"))
    entries = make_manifest(source, tmp_path / "m.parquet").ok
    arguments = (source, entries, make_vae(), (32, 32), 2, tmp_path / "latents")
    with pytest.raises(Stopped, match="SIGTERM"):
        build_latent_cache(*arguments, stop=StopsAfter(2))
    capsys.readouterr()
    cache = build_latent_cache(*arguments, stop=lambda: None)
    assert "encoding 1 of 3 clips" in capsys.readouterr().out and all(entry in cache for entry in entries)
    assert build_latent_cache(*arguments, stop=StopsAfter(0)).stopped is None


def test_a_clip_that_is_being_encoded_goes_on_where_it_stopped(tmp_path):
    source = open_source(write_clips(tmp_path / "clips"))
    entries = make_manifest(source, tmp_path / "m.parquet").ok
    encoded, vae = [], copy.deepcopy(make_vae())
    vae.encode = lambda pictures: encoded.append(len(pictures)) or make_vae().encode(pictures)
    arguments = (source, entries, vae, (32, 32), 2)
    with pytest.raises(Stopped):
        build_latent_cache(*arguments, tmp_path / "latents", batch_size=4, stop=StopsAfter(2))  # of three batches
    assert sum(encoded) == 2 * 8  # at both sizes
    encoded.clear()
    cache = build_latent_cache(*arguments, tmp_path / "latents", batch_size=4)
    assert sum(encoded) == 2 * (3 * 12 - 8)
    through = build_latent_cache(*arguments, tmp_path / "through", batch_size=4)
    for entry in entries:
        assert torch.equal(cache.read(entry, range(12)).mean, through.read(entry, range(12)).mean)


def test_what_was_encoded_is_written_after_a_while(tmp_path):
    source = open_source(write_clips(tmp_path / "clips"))
    entries = make_manifest(source, tmp_path / "m.parquet").ok
    written = []

    def killed() -> None:
        written.append(len(list((tmp_path / "latents").glob("*/shard-*"))))
        if len(written) == 4:
            raise KeyboardInterrupt

    arguments = (source, entries, make_vae(), (32, 32), 2, tmp_path / "latents")
    with pytest.raises(KeyboardInterrupt):  # in the second clip
        build_latent_cache(*arguments, batch_size=4, shard_seconds=0, stop=killed)
    assert written == [1, 2, 3, 4]
    assert all(entry in build_latent_cache(*arguments, batch_size=4) for entry in entries)
    assert len(list((tmp_path / "latents").glob("*/shard-*"))) == 5


def test_a_long_clip_is_not_decoded_to_its_end_after_a_signal(tmp_path):
    write_clip(tmp_path / "clips" / "long.mp4", np.repeat(noise(40, 32, 32), 50, axis=0), fps=20)
    asked, decoded = [], []

    class Counted(VideoFolder):
        def open(self, key):
            decoded.append(key)
            return super().open(key)

    def stop() -> str | None:
        asked.append(1)
        return "signal SIGINT"

    with pytest.raises(Stopped, match="SIGINT"):
        make_manifest(Counted(tmp_path / "clips"), tmp_path / "m.parquet", 1, stop)
    assert decoded == ["long.mp4"] and not (tmp_path / "m.parquet").exists() and len(asked) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits of file sizes are POSIX's")
def test_a_full_disk_is_a_sentence_and_nothing_finished_is_lost(tmp_path):
    """A limit of the size of files stands for a full disk; a process of its own has it."""
    write_clips(tmp_path / "clips")
    program = """
import resource, signal, sys
from pathlib import Path
from pipelines_tests.training.test_train_mardini import make_vae
from training.data.latents import build_latent_cache
from training.data.manifest import make_manifest
from training.data.sources import VideoFolder, open_source
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
source, folder = open_source("clips"), Path("out")
for limit in (300, 100_000, 3_000, 100_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        entries = make_manifest(source, folder / "m.parquet").ok
        if limit == 3_000:
            build_latent_cache(source, entries, make_vae(), (64, 64), 2, folder / "latents")
        print(limit, len(entries), len(list(folder.rglob("shard-*"))), len(list(folder.rglob("*.part"))))
    except ValueError as error:
        print(limit, error)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    lines = [line for line in result.stdout.splitlines() if line[:1].isdigit()]
    assert len(lines) == 4, result.stderr[-2000:]
    advice = "make room or make its folder writable, then type the same command again"
    assert "cannot write the manifest" in lines[0] and advice in lines[0]
    assert lines[1] == "100000 3 0 0"
    assert "cannot write the latent cache" in lines[2] and ".safetensors'" in lines[2] and advice in lines[2]
    assert lines[3] == "100000 3 0 0"  # the manifest is whole, and no half of a shard is left


def test_preparations_hear_the_file_and_the_hours(tmp_path):
    config = make_config(data=data_fields(write_clips(tmp_path / "clips"))).for_processes(1)
    request = StopRequest(tmp_path, max_hours=1e-12)
    with pytest.raises(Stopped, match="max_hours"):
        prepare_data(config, make_vae(), tmp_path, Accelerator(cpu=True), stop=lambda: request.reason)
    (tmp_path / "stop").touch()
    request = StopRequest(tmp_path)
    with pytest.raises(Stopped, match="the file"):
        prepare_data(config, make_vae(), tmp_path, Accelerator(cpu=True), stop=lambda: request.reason)
    request.done()
    prepare_data(config, make_vae(), tmp_path, Accelerator(cpu=True), stop=lambda: request.reason)


def test_a_run_that_is_stopped_while_clips_are_prepared_says_so_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AutoencoderPatchBasis(block_out_channels=(8,) * 4).save_pretrained(tmp_path / "vae")
    config = make_config(data=data_fields(write_clips(tmp_path / "clips")), vae=str(tmp_path / "vae"), trackers=[])
    folder, starts = tmp_path / "runs" / "test", 0
    folder.mkdir(parents=True)
    while True:  # a clip a start, or more
        (folder / "stop").touch()
        with pytest.raises(Stopped, match="the file"):
            train(config, runs=tmp_path / "runs")
        assert not (folder / "stop").exists() and not (folder / "lock.json").exists()
        status = json.loads((folder / "status.json").read_text())
        assert (status["state"], status["failed_clips"]) == ("stopped", 0) and "the file" in status["reason"]
        starts += 1
        if status["global_step"]:
            break
    assert 2 < starts < 10
