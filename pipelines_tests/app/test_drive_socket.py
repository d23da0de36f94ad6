"""The WebSocket of the drive: frames for keys, kind refusals, and nobody's trouble is another's."""

import json
import re

import pytest

from diffusers_mardini.app.limits import Limits
from pipelines_tests.app.worlds import pictures


fastapi = pytest.importorskip("fastapi")
testclient = pytest.importorskip("fastapi.testclient")

from diffusers_mardini.app.checkpoints import Checkpoints  # noqa: E402
from diffusers_mardini.app.drive_socket import STATIC, Drivers  # noqa: E402
from diffusers_mardini.video_io import read_video, write_video  # noqa: E402


def client(worlds, start=None, **limits):
    app = fastapi.FastAPI()
    app.include_router(Drivers(Checkpoints(worlds, True, "cpu", "float32"), Limits(**limits), start).router())
    return testclient.TestClient(app)


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4", pictures(6), 10)


def frame(socket):
    data = socket.receive_bytes()
    length = int.from_bytes(data[:4], "little")
    return json.loads(data[4 : 4 + length]), data[4 + length :]


def started(socket, checkpoint, **wish):
    assert socket.receive_json()["is"] == "open"
    socket.send_json({"do": "start", "checkpoint": checkpoint, "steps": 1, **wish})
    answer = socket.receive_json()
    assert answer["is"] == "ready", answer
    facts, _ = frame(socket)
    assert facts["index"] == 0
    return answer


def made(socket, keys):
    socket.send_json({"do": "next", "keys": keys, "key": 3})
    return [frame(socket) for _ in range(4)]


def test_frames_come_for_the_keys_and_left_differs_from_right(worlds, clip):
    seen = {}
    for keys in ("left", "right"):
        with client(worlds, clip).websocket_connect("/drive/ws") as socket:
            answer = started(socket, worlds[1])
            assert (answer["fps"], answer["width"], answer["height"]) == (10, 32, 32)
            frames = made(socket, [keys, "x"])
            assert [facts["index"] for facts, _ in frames] == [1, 2, 3, 4]
            assert [facts["last"] for facts, _ in frames] == [False, False, False, True]
            assert frames[0][0]["keys"] == [keys] and frames[0][0]["key"] == 3 and frames[0][0]["seconds"] > 0
            seen[keys] = frames[-1][1]
    assert seen["left"] != seen["right"]


def test_a_checkpoint_without_actions_is_refused_kindly_and_another_may_follow(worlds, clip):
    with client(worlds, clip).websocket_connect("/drive/ws") as socket:
        hello = socket.receive_json()
        assert hello["first"] == worlds[1] and [name for name, _ in hello["checkpoints"]] == ["still", "driven"]
        socket.send_json({"do": "start", "checkpoint": worlds[0]})
        answer = socket.receive_json()
        assert answer["is"] == "cannot" and "still cannot be driven" in answer["message"]
        socket.send_json({"do": "start", "checkpoint": worlds[1]})
        assert socket.receive_json()["is"] == "ready"


def test_own_files_start_a_drive_and_bad_ones_are_refused(worlds, clip):
    with client(worlds, clip).websocket_connect("/drive/ws") as socket:
        socket.receive_json()
        for name, data, expected in (
            ("note.png", b"hello", "'note.png' is no picture"),
            ("../../etc/x.mp4", b"hello", "'x.mp4' cannot be decoded as a video"),
        ):
            socket.send_json({"do": "file", "name": name})
            socket.send_bytes(data)
            socket.send_json({"do": "start", "checkpoint": worlds[1], "from": "file"})
            answer = socket.receive_json()
            assert answer["is"] == "error" and expected in answer["message"]
        socket.send_json({"do": "file", "name": "clip.mp4"})
        socket.send_bytes(clip.read_bytes())
        socket.send_json({"do": "start", "checkpoint": worlds[1], "from": "file", "steps": 1})
        assert socket.receive_json()["is"] == "ready"


def test_a_recording_comes_back_as_an_mp4_of_the_driven_frames(worlds, clip, tmp_path):
    with client(worlds, clip).websocket_connect("/drive/ws") as socket:
        started(socket, worlds[1])
        socket.send_json({"do": "save"})
        assert "nothing was recorded" in socket.receive_json()["message"]
        socket.send_json({"do": "record"})
        made(socket, ["up"])
        made(socket, [])
        socket.send_json({"do": "save"})
        assert socket.receive_json() == {"is": "recording", "frames": 8}
        (tmp_path / "saved.mp4").write_bytes(socket.receive_bytes())
        frames, fps = read_video(tmp_path / "saved.mp4")
        assert len(frames) == 8 and fps == 10


def test_restart_goes_back_to_the_start(worlds, clip):
    with client(worlds, clip).websocket_connect("/drive/ws") as socket:
        started(socket, worlds[1])
        made(socket, ["up"])
        socket.send_json({"do": "restart"})
        assert frame(socket)[0]["index"] == 0
        assert made(socket, [])[0][0]["index"] == 1


@pytest.mark.parametrize(
    "wish, message",
    [
        ("no json", "unknown wish"),
        ("[1]", "unknown wish"),
        ('{"do": "fly"}', "unknown wish; do one of file, start"),
        ('{"do": "next"}', "not driving yet; press Start"),
        ('{"do": "start", "steps": 900}', "steps is 900; give 1 to 25"),
        ('{"do": "start", "seed": "x"}', "seed is x; give 0 to"),
        ('{"do": "start", "checkpoint": "/nowhere/at/all"}', "cannot be read as a checkpoint"),
    ],
)
def test_wrong_wishes_are_answered_and_the_visit_goes_on(worlds, clip, wish, message):
    with client(worlds, clip).websocket_connect("/drive/ws") as socket:
        socket.receive_json()
        socket.send_text(wish)
        answer = socket.receive_json()
        assert answer["is"] == "error" and message in answer["message"]
        socket.send_bytes(b"bytes out of turn")
        assert "unknown wish" in socket.receive_json()["message"]


def test_an_error_of_the_server_is_not_shown_and_ends_nothing(worlds, clip, monkeypatch):
    with client(worlds, clip).websocket_connect("/drive/ws") as socket:
        started(socket, worlds[1])
        with monkeypatch.context() as patch:
            patch.setattr("diffusers_mardini.app.driving.Drive.step", lambda *_: {}["secret"])
            socket.send_json({"do": "next"})
            assert "secret" not in socket.receive_json()["message"]
        assert len(made(socket, [])) == 4


def test_two_drive_at_once_and_a_third_is_told_to_wait(worlds, clip):
    server = client(worlds, clip, drivers=2)
    with server.websocket_connect("/drive/ws") as one, server.websocket_connect("/drive/ws") as two:
        started(one, worlds[1])
        started(two, worlds[1])
        mine, other = made(one, ["left"]), made(two, ["right"])
        assert mine[-1][1] != other[-1][1]
        with server.websocket_connect("/drive/ws") as three:
            answer = three.receive_json()
            assert answer["is"] == "busy" and "2 people are driving already" in answer["message"]
    with server.websocket_connect("/drive/ws") as again:
        assert again.receive_json()["is"] == "open"


def test_a_drive_ends_when_its_time_is_up(worlds, clip):
    with client(worlds, clip, drive_seconds=0.2).websocket_connect("/drive/ws") as socket:
        socket.receive_json()
        assert socket.receive_json()["is"] == "over"


def test_a_file_that_is_announced_and_does_not_come_is_said_and_ends_with_the_drive(worlds, clip):
    with client(worlds, clip, drive_seconds=1).websocket_connect("/drive/ws") as socket:
        assert socket.receive_json()["most_bytes"] == Limits().upload_bytes
        socket.send_json({"do": "file", "name": "a.png"})
        socket.send_json({"do": "next"})
        assert "something else came" in socket.receive_json()["message"]
        socket.send_json({"do": "file", "name": "a.png"})
        assert socket.receive_json()["is"] == "over"


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "http://["])
def test_pages_of_others_cannot_drive(worlds, origin):
    with (
        pytest.raises(fastapi.WebSocketDisconnect),
        client(worlds).websocket_connect("/drive/ws", headers={"origin": origin}) as socket,
    ):
        socket.receive_json()


def test_the_page_needs_nothing_from_elsewhere(worlds):
    server = client(worlds)
    page = server.get("/drive").text
    names = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {"drive/static/drive.js", "drive/static/drive.css"} <= set(names)
    for name in names:
        assert not name.startswith(("http", "//"))
        assert name.startswith("data:") or server.get(f"/{name}").status_code == 200
    for file in STATIC.iterdir():
        assert "http" not in file.read_text(encoding="utf-8").replace('replace("http", "ws")', "")
    assert server.get("/drive/static/..%2fserver.py").status_code == 404
    assert server.get("/drive/static/other.js").status_code == 404
