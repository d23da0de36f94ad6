"""One process owns a run: a second one is refused while the first lives, and follows it when it is dead."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from accelerate import Accelerator

from diffusers_mardini import AutoencoderPatchBasis
from pipelines_tests.training.test_train_mardini import clips_folder, data_fields, make_config, make_vae, write_clips
from training import locks as ownership
from training.data.preparation import prepare_data
from training.locks import OwnedError, Owner, turn_to_write
from training.stopping import Stopped
from training.train_autoencoder import AutoencoderTrainingConfig
from training.train_autoencoder import run as train_autoencoder
from training.train_mardini import train


ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys, time; from pathlib import Path; from training.locks import Owner\n"
    "with Owner(Path(sys.argv[1]), 'the run x'): print('mine', flush=True); time.sleep(600)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that owns `lock.json`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock.json")], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )  # fmt: skip
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_with_the_owners_name_and_follows_it_when_it_is_dead(tmp_path, holder):
    with pytest.raises(
        OwnedError, match=f"the run x is being written by process {holder.pid} on .*wait until it ends"
    ):
        Owner(tmp_path / "lock.json", "the run x").__enter__()
    holder.kill()
    holder.wait()
    with Owner(tmp_path / "lock.json", "the run x"):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="Linux has namespaces of processes")
def test_containers_without_a_machine_id_differ_by_their_processes_namespace(monkeypatch):
    def read(path, *arguments, **options):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", read)
    assert ownership._machine().endswith(f" {os.stat('/proc/self/ns/pid').st_ino}")


def write_owner(path: Path, **changes) -> None:
    path.write_text(json.dumps({**ownership._this_process(), "since": "then", "id": "another", **changes}))


@pytest.mark.parametrize(
    "changes", [{"pid": 2**22 + 1}, {"started": 1.0}, {"pid": None}, {"pid": "x"}, {"started": None}]
)
def test_an_owner_on_this_machine_is_dead_when_its_process_is(tmp_path, changes):
    write_owner(tmp_path / "lock.json", **changes)  # a number that was given again is another process's
    with Owner(tmp_path / "lock.json", "it"):
        pass


def test_an_owner_elsewhere_is_dead_when_it_was_silent_for_long(tmp_path):
    path = tmp_path / "lock.json"
    write_owner(path, machine="another", host="node7", pid=1)
    with pytest.raises(OwnedError, match="process 1 on node7"):
        Owner(path, "it").__enter__()
    os.utime(path, (0, time.time() - ownership.SILENCE - 1))
    with Owner(path, "it"):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_an_owner_elsewhere_that_misses_beats_is_waited_for(tmp_path, capsys, monkeypatch):
    """A cluster starts a killed job again on another machine, within minutes."""
    path = tmp_path / "lock.json"
    write_owner(path, machine="another", host="node7", pid=1)
    os.utime(path, (0, time.time() - 4 * ownership.BEAT))
    with pytest.raises(Stopped, match="told to"), Owner(path, "it", stop=lambda: "told to"):
        pass
    monkeypatch.setattr(ownership, "SILENCE", 4 * ownership.BEAT + 2)
    with Owner(path, "it"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert "waiting for process 1 on node7" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"[]", b"\xff"])
def test_a_damaged_lock_is_one_of_an_unknown_machine(tmp_path, content):
    path = tmp_path / "lock.json"
    path.write_bytes(content)
    with pytest.raises(OwnedError, match=r"process \(unknown\) on an unknown machine"):
        Owner(path, "it").__enter__()
    os.utime(path, (0, time.time() - ownership.SILENCE - 1))
    with Owner(path, "it"):
        pass


def test_the_owner_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "BEAT", 0.02)
    path = tmp_path / "lock.json"
    with Owner(path, "it"):
        os.utime(path, (0, 0))
        time.sleep(0.3)
        assert path.stat().st_mtime > 0
        path.unlink()  # by hand
        time.sleep(0.3)
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_one_of_many_follows_a_dead_owner(tmp_path):
    path = tmp_path / "lock.json"
    write_owner(path, pid=2**22 + 1)
    taken, go = [], threading.Barrier(8)

    def follow():
        go.wait()
        try:
            with Owner(path, "it"):
                taken.append(threading.get_ident())
                time.sleep(0.5)
        except OwnedError:
            pass

    threads = [threading.Thread(target=follow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and not list(tmp_path.iterdir())


def test_who_waits_for_its_turn_is_told_and_hears_a_request_to_stop(tmp_path, holder, capsys):
    with (
        pytest.raises(Stopped, match="signal SIGTERM"),
        turn_to_write(tmp_path / "lock.json", "it", lambda: "signal SIGTERM"),
    ):
        pass
    threading.Timer(0.3, holder.kill).start()
    with turn_to_write(tmp_path / "lock.json", "the cache"):
        assert holder.wait() < 0
    assert f"waiting for process {holder.pid}" in capsys.readouterr().out


def test_a_run_that_is_being_trained_is_not_trained_a_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folder = tmp_path / "runs" / "test"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text("as it was")
    write_owner(folder / "lock.json", machine="another", host="node7", pid=1)
    AutoencoderPatchBasis(block_out_channels=(8,) * 4).save_pretrained(tmp_path / "vae")
    config = make_config(vae=str(tmp_path / "vae"), trackers=[])
    with pytest.raises(ValueError, match=f"the run {folder} is being written by process 1 on node7"):
        train(config, runs=tmp_path / "runs")
    assert sorted(path.name for path in folder.iterdir()) == ["lock.json", "status.json"]
    write_owner(folder / "lock.json", pid=2**22 + 1)
    train(config, runs=tmp_path / "runs", stop_after="planner")
    assert (
        not (folder / "lock.json").exists() and json.loads((folder / "status.json").read_text())["state"] == "finished"
    )


def test_an_autoencoder_that_is_being_trained_is_not_trained_a_second_time(tmp_path):
    write_owner(tmp_path / ".vae.lock.json", machine="another", host="node7", pid=1)
    config = AutoencoderTrainingConfig(clips=clips_folder(), held_out=clips_folder(), output=tmp_path / "vae")
    with pytest.raises(ValueError, match="the autoencoder .*vae is being written by process 1 on node7"):
        train_autoencoder(config)


def test_the_same_clips_are_not_decoded_and_encoded_by_two_at_once(tmp_path, capsys):
    config, ready = make_config(data=data_fields(write_clips(tmp_path / "clips"))).for_processes(1), []

    def prepare(name: str) -> None:
        (tmp_path / name).mkdir()
        data = prepare_data(config, make_vae(), tmp_path / name, Accelerator(cpu=True))
        ready.append(len(data.train.entries))

    threads = [threading.Thread(target=prepare, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ready == [3, 3] and capsys.readouterr().out.count("encoding 3 of 3 clips") == 1
    assert not list(tmp_path.rglob("*lock.json"))
