"""A source is prepared part by part: the same result for any number of processes, kills and machines."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.data.test_latents import tiny_vae
from pipelines_tests.training.test_train_mardini import data_fields, make_config, make_vae, write_clips
from training.data import parts, prepare
from training.data.buckets import Bucket, WindowRequest
from training.data.clip_lists import ClipRow, write_clip_list
from training.data.latents import LatentCache, build_latent_cache
from training.data.manifest import make_manifest
from training.data.manifest_files import default_path, read_manifest
from training.data.parts import Job, Outcome, divide, merge, now, prepare_part
from training.data.preparation import prepare_data
from training.data.sources import open_source


REQUEST = WindowRequest("stage", (Bucket(16, 16, 3),), strides=((1, 1.0),))
COUNT = 7


@pytest.fixture
def clips(tmp_path) -> Path:
    for index in range(COUNT):
        write_clip(tmp_path / "clips" / f"{index}.mp4", noise(3 + index, 32, 32, seed=index), fps=10)
    (tmp_path / "clips" / "broken.mp4").write_text("no video")
    return tmp_path / "clips"


def job_of(clips, out, load_vae=tiny_vae) -> Job:
    return Job(str(clips), None, out, (REQUEST,), 2, "tiny", load_vae, now(out))


def run(job, engine="local", workers=1, **arguments) -> list[Outcome]:
    numbers = divide(job, job.open_source(), 3)
    outcomes = prepare.prepare(job, numbers, engine, workers, say=lambda _: None, **arguments)
    merge(job, [outcome.number for outcome in outcomes])
    return outcomes


def cache_in(out) -> LatentCache:
    (index,) = (out / "latents").rglob("index.json")
    return LatentCache(index.parent)


def check_whole(clips, out) -> None:
    """The result is what one process makes of the whole source."""
    source = open_source(clips)
    expected = make_manifest(source, out.parent / "whole.parquet")
    found = read_manifest(source, default_path(source.spec, out / "manifests"))
    assert found.entries == expected.entries
    cache, alone = (
        cache_in(out),
        build_latent_cache(source, expected.ok, tiny_vae(), (16, 16), 2, out.parent / "alone"),
    )
    for entry in expected.ok:
        ours, theirs = (each.read(entry, range(entry.num_frames)) for each in (cache, alone))
        assert (ours.mean == theirs.mean).all() and (ours.planner_mean == theirs.planner_mean).all()


def test_parts_together_are_the_whole(clips, tmp_path, monkeypatch):
    job = job_of(clips, tmp_path / "out")
    outcomes = run(job)
    assert [(each.state, each.clips) for each in outcomes] == [("done", 3), ("done", 3), ("done", 2)]
    assert sum(each.usable for each in outcomes) == COUNT
    check_whole(clips, tmp_path / "out")
    # A second time, and for a run that reads the result, nothing is decoded or encoded.
    monkeypatch.setattr("training.data.manifest.probe_video", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr("training.data.latents.encode_frames", lambda *_: pytest.fail("encoded again"))
    assert run(replace(job, began=now(job.out))) == outcomes
    source = open_source(clips)
    manifest = make_manifest(source, default_path(source.spec, job.out / "manifests"))
    build_latent_cache(source, manifest.ok, tiny_vae(), (16, 16), 2, job.latents)


def test_new_clips_get_parts_of_their_own_and_changed_ones_are_read_again(clips, tmp_path):
    run(job_of(clips, tmp_path / "out"))
    write_clip(clips / "new.mp4", noise(5, 32, 32, 90), fps=10)
    write_clip(clips / "2.mp4", noise(9, 32, 32, 91), fps=10)
    (clips / "4.mp4").unlink()
    assert len(run(job_of(clips, tmp_path / "out"))) == 4
    check_whole(clips, tmp_path / "out")


def test_a_part_that_fails_is_reported_tried_again_and_stops_no_other(clips, tmp_path, monkeypatch, capsys):
    real = parts.encode_part

    def failing(*arguments):
        if arguments[6] == 1:
            raise RuntimeError("the device is lost")
        real(*arguments)

    monkeypatch.setattr(parts, "encode_part", failing)
    monkeypatch.setattr(prepare, "make_job", lambda *_: job_of(clips, tmp_path / "out"))
    arguments = [str(clips), str(tmp_path / "out"), "--workers", "1", "--clips", "3"]
    assert prepare.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "part 1 failed and is missing: the device is lost" in printed and "4 of 5 clips" in printed
    monkeypatch.setattr(parts, "encode_part", real)
    assert prepare.main(arguments) == 0
    assert f"{COUNT} of {COUNT + 1} clips" in capsys.readouterr().out
    check_whole(clips, tmp_path / "out")


def test_a_part_is_prepared_by_one_process_and_the_others_wait_for_it(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_WAIT", 0.05)
    job = job_of(clips, tmp_path / "out")
    divide(job, open_source(clips), 3)
    with parts._claim(job, 1):
        assert prepare_part(job, 1).state == "elsewhere"
        waiting = threading.Thread(target=run, args=(job,))
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive()
    waiting.join(60)
    check_whole(clips, tmp_path / "out")


def test_a_request_to_stop_keeps_what_is_done(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "make_job", lambda *_: job_of(clips, tmp_path / "out"))
    real = prepare.prepare_part

    def stopping(job, number):
        outcome = real(job, number)
        (job.out / "stop").touch()
        return outcome

    monkeypatch.setattr(prepare, "prepare_part", stopping)
    arguments = [str(clips), str(tmp_path / "out"), "--workers", "1", "--clips", "3"]
    assert prepare.main(arguments) == prepare.STOPPED
    assert f"delete {tmp_path / 'out' / 'stop'}; the same command goes on" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("parts/*/*/done.json"))) == 1
    (tmp_path / "out" / "stop").unlink()
    monkeypatch.setattr(prepare, "prepare_part", real)
    assert prepare.main(arguments) == 0
    check_whole(clips, tmp_path / "out")


def test_two_sources_are_prepared_into_one_folder(clips, tmp_path, monkeypatch):
    """As training and held-out clips are, because a run has one folder of manifests."""
    out, other = tmp_path / "out", tmp_path / "other"
    for index in range(2):
        write_clip(other / f"{index}.mp4", noise(4, 32, 32, seed=90 + index), fps=10)
    jobs = [replace(job_of(one, out), load_vae=None, requests=()) for one in (clips, other)]
    assert [sum(part.usable for part in run(job)) for job in jobs] == [COUNT, 2]
    decoded = []
    monkeypatch.setattr("training.data.manifest.probe_video", lambda *_: decoded.append(1))
    for job, count in zip(jobs, (COUNT, 2)):
        assert sum(part.usable for part in run(replace(job, began=now(out)))) == count and not decoded
        source = job.open_source()
        assert len(read_manifest(source, default_path(source.spec, out / "manifests")).ok) == count
    assert jobs[0].digest() != jobs[1].digest() and jobs[0].parts != jobs[1].parts


def test_one_worker_stops_within_a_part(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        prepare, "make_job", lambda *_: replace(job_of(clips, tmp_path / "out"), load_vae=None, requests=())
    )
    real, seen = parts.make_manifest, []

    def slow(source, path, workers, stop):
        def asked():
            seen.append(1)
            time.sleep(0.3)
            return stop()

        if not seen:
            os.kill(os.getpid(), signal.SIGTERM)
            while not asked():
                assert len(seen) < 50
        return real(source, path, workers, asked)

    monkeypatch.setattr(parts, "make_manifest", slow)
    assert prepare.main([str(clips), str(tmp_path / "out"), "--workers", "1", "--clips", "100"]) == prepare.STOPPED
    assert not list((tmp_path / "out").glob("parts/*/*/done.json")) and not list((tmp_path / "out").glob(".stop-*"))


def test_the_gpus_of_a_machine_are_dealt_out_to_processes(monkeypatch):
    monkeypatch.setattr(parts, "choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for number in range(3):
        parts.set_worker(number)
        found.append(parts.device_of_worker().index)
    parts.set_worker(0)
    assert found == [0, 1, 0]
    monkeypatch.setattr(parts, "choose_device", lambda: torch.device("cpu"))
    assert parts.device_of_worker() == torch.device("cpu")


def test_merging_decodes_no_clip_of_a_part_that_failed(clips, tmp_path, monkeypatch):
    rows = [ClipRow(str(clips), f"{index}.mp4", 0, 3) for index in range(3)]
    write_clip_list(tmp_path / "list.jsonl", rows)
    job = replace(job_of(tmp_path / "list.jsonl", tmp_path / "out"), load_vae=None, requests=())
    numbers = divide(job, job.open_source(), 2)
    assert prepare_part(job, numbers[0]).usable == 2
    monkeypatch.setattr("training.data.manifest.probe_video", lambda *_: pytest.fail("a clip was decoded"))
    assert len(merge(job, numbers).ok) == 2


def dying_vae(out: Path, number: int):
    """Kill the process that works on one part, as a system without memory does."""
    vae = tiny_vae()
    encode = vae.encode

    def dying(*arguments, **kwargs):
        lock = next(out.glob(f"parts/*/{number:06d}/lock.json"), None)
        if lock is not None and json.loads(lock.read_text())["pid"] == os.getpid():
            os._exit(9)
        return encode(*arguments, **kwargs)

    if multiprocessing.parent_process() is not None:  # the test's own process loads it, too, to merge
        vae.encode = dying
    return vae


def test_a_process_that_is_killed_fails_its_part_alone(clips, tmp_path):
    out = tmp_path / "out"
    outcomes = run(job_of(clips, out, partial(dying_vae, out, 1)), workers=2)
    assert [each.state for each in outcomes] == ["done", "failed", "done"] and "lack of memory" in outcomes[1].reason
    assert [each.state for each in run(job_of(clips, out))] == ["done"] * 3
    check_whole(clips, out)


PROGRAM = """
import sys
from pathlib import Path
from pipelines_tests.training.data.test_prepare import job_of, run
run(job_of(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def test_a_killed_preparation_goes_on_where_it_stood(clips, tmp_path):
    out = tmp_path / "out"
    killed = subprocess.Popen([sys.executable, "-c", PROGRAM, str(clips), str(out)])
    while not list(out.glob("parts/*/*/done.json")) and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    outcomes = run(job_of(clips, out))  # the lock of a dead process is taken over
    assert {each.state for each in outcomes} == {"done"}
    check_whole(clips, out)


def test_a_run_finds_its_clips_and_latents_prepared(tmp_path, capsys):
    make_vae().save_pretrained(tmp_path / "vae")
    videos, out = write_clips(tmp_path / "clips"), tmp_path / "out"
    prepared = {"manifests": str(out / "manifests"), "cache": str(out / "latents")}
    config = make_config(vae=str(tmp_path / "vae"), data=data_fields(videos, flip=0.5, validation=None, **prepared))
    (tmp_path / "run.yaml").write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    arguments = [str(videos), str(out), "--config", str(tmp_path / "run.yaml"), "--workers", "1", "--clips", "2"]
    assert prepare.main(arguments) == 0
    assert f"data.manifests={out / 'manifests'} data.cache={out / 'latents'}" in capsys.readouterr().out
    held = sorted(path for path in out.rglob("*") if path.suffix in (".parquet", ".safetensors"))
    windows = prepare_data(config.for_processes(1), make_vae(), tmp_path, Accelerator(cpu=True)).train
    assert len(windows.entries) == 3 and "encoding" not in capsys.readouterr().out
    assert held == sorted(path for path in out.rglob("*") if path.suffix in (".parquet", ".safetensors"))


def test_parts_end_where_archives_do(tmp_path):
    keys = [
        f"{archive}.tar/{clip}.mp4" for archive, count in ((0, 2), (1, 2), (2, 7), (3, 1)) for clip in range(count)
    ]
    portions = list(parts._portions(iter(keys), 4))
    assert [len(portion) for portion in portions] == [4, 4, 4] and [key for each in portions for key in each] == keys
    assert [len(portion) for portion in parts._portions(iter("abcdefghij"), 4)] == [4, 4, 2]


def test_ray_runs_the_same_function_on_a_cluster_of_two_workers(clips, tmp_path):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    out = tmp_path / "out"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        outcomes = run(job_of(clips, out), engine="ray", workers=2)
    finally:
        ray.shutdown()
    assert [each.state for each in outcomes] == ["done"] * 3
    check_whole(clips, out)


def test_an_engine_that_is_not_installed_says_how_to_install_it(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install \"\.\[ray\]\""):
        run(job_of(clips, tmp_path / "out"), engine="ray")
