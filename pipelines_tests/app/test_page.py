"""The page without a browser: what its handlers answer, what its server serves, and what it removes."""

import socket
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diffusers_mardini.app.limits import Limits
from diffusers_mardini.video_io import read_video, write_video
from pipelines_tests.app.worlds import pictures


gr = pytest.importorskip("gradio")
testclient = pytest.importorskip("fastapi.testclient")

from starlette.websockets import WebSocketDisconnect  # noqa: E402

from diffusers_mardini.app import fill_tab, server  # noqa: E402
from diffusers_mardini.app.checkpoints import Checkpoints  # noqa: E402
from diffusers_mardini.app.fill_tab import FillTab, uploaded  # noqa: E402
from diffusers_mardini.app.given import Given, of_clip, of_pictures  # noqa: E402
from diffusers_mardini.app.jobs import Jobs, Turns  # noqa: E402
from diffusers_mardini.app.long_tab import LongTab  # noqa: E402
from diffusers_mardini.app.model_row import ModelRow  # noqa: E402
from diffusers_mardini.app.sampling import fill as sampled  # noqa: E402
from diffusers_mardini.app.server import ThisMachineOnly, is_loopback, make_app  # noqa: E402
from diffusers_mardini.app.site import Site, for_visitors  # noqa: E402


@pytest.fixture(autouse=True)
def _uploads_elsewhere(monkeypatch):
    """`make_app` sets this for the whole process."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")


@pytest.fixture
def site(worlds, tmp_path):
    return Site(Checkpoints(worlds, True, "cpu", "float32"), Limits(), Jobs(60), Turns(1), tmp_path / "results")


@pytest.fixture
def tab(site):
    with gr.Blocks():
        return FillTab(site, ModelRow(site))


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4", pictures(12), 10)


def visitor(name):
    return SimpleNamespace(session_hash=name)


def picture_files(folder, count):
    paths = [folder / f"{i}.png" for i in range(count)]
    for path, picture in zip(paths, pictures(count)):
        picture.save(path)
    return [str(path) for path in paths]


def make(tab, given, session="me", steps=2, frames=9, checkpoint=None):
    return list(tab.on_make(given, frames, checkpoint, "", 1.0, steps, None, 0, visitor(session)))


def given_places(strip):
    return [place["place"] for place in strip if place["kind"] == "given"]


def test_the_strip_is_laid_in_the_order_of_the_clicks(site):
    with gr.Blocks() as page:
        tab = FillTab(site, ModelRow(site))
    laying = [f for f in page.fns.values() if tab.given in f.outputs]
    assert len(laying) >= 7 and {(f.concurrency_id, f.concurrency_limit) for f in laying} == {("strip", 1)}


@pytest.mark.parametrize("count, places", [(1, [0]), (2, [0, 8]), (3, [0, 4, 8])])
def test_pictures_are_spread_over_the_window(tab, worlds, tmp_path, count, places):
    files = picture_files(tmp_path, count)
    given, strip, text, dropped = tab.on_drop(files[::-1], 9, "first", worlds[0])
    assert list(given.pictures) == given_places(strip) == places and dropped is None
    assert f"{count} given, {9 - count} to make" in text
    assert given.pictures[0].getpixel((0, 0)) == (0, 255, 90)  # in the order of their names


def test_a_clip_is_given_by_a_pattern_and_by_another_one(tab, worlds, clip):
    given, strip, *_ = tab.on_drop([str(clip)], 9, "first and last", worlds[0])
    assert given_places(strip) == [0, 8]
    given, strip, _ = tab.on_pattern(given, 9, "first half")
    assert given_places(strip) == [0, 1, 2, 3, 4] and given.file == Path(clip)
    assert given_places(tab.on_pattern(given, 6, "every fourth")[1]) == [0, 4, 5]


def test_another_checkpoint_takes_a_clip_at_its_own_rate(tab, worlds, tmp_path, monkeypatch):
    file = write_video(tmp_path / "fast.mp4", pictures(40), 20)
    given, *_ = tab.on_drop([str(file)], 9, "first half", worlds[0])
    shown = read_video(file)[0]
    rate = tab.site.checkpoints.lend(worlds[0]).trained_window.fps
    window = replace(tab.site.checkpoints.lend(worlds[0]).trained_window, fps=rate / 2)
    monkeypatch.setattr(type(tab.site.checkpoints.lend(worlds[0])), "trained_window", property(lambda pipe: window))
    slower, strip, _ = tab.on_window(given, 9, "first half", worlds[0])
    assert given_places(strip) == [0, 1, 2, 3, 4]
    step = round(20 / rate)
    assert np.array_equal(np.asarray(given.pictures[1]), shown[step])
    assert np.array_equal(np.asarray(slower.pictures[1]), shown[2 * step])
    file.unlink()
    gone, strip, text = tab.on_window(slower, 9, "first half", worlds[0])
    assert not gone.pictures and "give it again" in text


def test_a_picture_is_put_onto_a_place_and_taken_off(tab, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (path,) = picture_files(tmp_path, 1)
    given, strip, _ = tab.on_place(Given(), 9, SimpleNamespace(path=path, place=3))
    assert given_places(strip) == [3]
    given, strip, text = tab.on_take_off(given, 9, SimpleNamespace(place=3))
    assert not given.pictures and given_places(strip) == [] and "Drop pictures" in text
    *_, text = tab.on_place(given, 9, SimpleNamespace(path=path, place=12))
    assert "there is no place 13" in text and "bad" in text


def test_the_browser_cannot_name_other_files_of_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    (secret,) = picture_files(tmp_path, 1)
    (tmp_path / "uploads" / "link.png").symlink_to(secret)
    for path in ("", "/etc/passwd", secret, str(tmp_path / "uploads/../0.png"), str(tmp_path / "uploads/link.png")):
        with pytest.raises(ValueError, match="the upload failed"):
            uploaded(path)


def test_what_cannot_be_used_leaves_the_strip_and_says_why(tab, worlds, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for files, message in (
        ([str(tmp_path / "notes.txt")], "'notes.txt'"),
        (picture_files(tmp_path, 12), "12 pictures fill the window of 9 frames"),
        (["x.png"] * 50, "50 files are too many"),
    ):
        given, strip, text, _ = tab.on_drop(files, 9, "first", worlds[0])
        assert message in text.replace("&#x27;", "'") and 'role="alert"' in text
        assert not isinstance(given, Given) and not isinstance(strip, list)
    with pytest.raises(ValueError, match="the clip has 5 frames at the rate of this checkpoint"):
        of_clip(pictures(5), 9, "first and last")


def test_making_ends_with_the_frames_as_files_and_beside_a_cross_fade(tab):
    updates = make(tab, of_pictures(pictures(2), 9))
    strip, text, video, comparison, *_ = updates[-1]
    assert [place["kind"] for place in strip] == ["given", *["made"] * 7, "given"]
    assert "Made 7 frames, 10 a second" in text
    frames, fps = read_video(video)
    assert len(frames) == 9 and fps == 10
    assert len(comparison["ours"]) == len(comparison["simple"]) == 9 and comparison["name"] == "cross-fade"
    assert Path(video).with_suffix(".gif").is_file()


def test_errors_of_making_are_said_and_the_page_goes_on(tab, monkeypatch):
    assert "nothing is given" in make(tab, Given())[-1][1]
    with monkeypatch.context() as patch:
        patch.setattr("diffusers_mardini.app.fill_tab.fill", lambda *_: {}["secret"])
        text = make(tab, of_pictures(pictures(1), 9))[-1][1]
        assert "Something went wrong" in text and "secret" not in text
    assert "Made 8 frames" in make(tab, of_pictures(pictures(1), 9))[-1][1]


def test_after_an_error_the_strip_shows_what_is_given_and_no_half_made_frames(tab, monkeypatch):
    def breaks(pipe, given, num_frames, sampling, limits, job, report):
        def half(progress):
            report(progress)
            if progress.preview is not None:
                raise ValueError("enough")

        return sampled(pipe, given, num_frames, sampling, limits, job, half)

    monkeypatch.setattr(fill_tab, "fill", breaks)
    last = make(tab, of_pictures(pictures(2), 9), steps=8)[-1]
    assert "enough" in last[1] and given_places(last[0]) == [0, 8]
    assert {place["kind"] for place in last[0]} == {"given", "empty"}


def test_a_gif_plays_as_long_as_the_video(site):
    frames = pictures(25)
    mp4, gif = site.write_results("me", frames, 100.0)
    assert len(read_video(mp4)[0]) == 25
    shown, fps = read_video(gif)
    assert fps == pytest.approx(50) and len(shown) == 13
    assert np.abs(shown[1].astype(int) - np.asarray(frames[2])).max() < 40


def test_results_lie_apart_for_each_visitor_and_go_with_them(tab, site):
    mine = Path(make(tab, of_pictures(pictures(1), 9), "me")[-1][2])
    other = Path(make(tab, of_pictures(pictures(1), 9), "../../you")[-1][2])
    assert mine.is_relative_to(site.room) and other.is_relative_to(site.room)
    assert mine.parents[1] != other.parents[1]
    newer = Path(make(tab, of_pictures(pictures(1), 9), "me")[-1][2])
    assert newer.is_file() and not mine.exists()
    site.leave("me")
    assert not newer.exists() and other.is_file()


def test_visitors_wait_their_turn_and_cancel_their_own_work_only(tab, monkeypatch):
    calls = []

    def slow_at_first(pipe, given, num_frames, sampling, limits, job, report):
        calls.append(job)

        def held(value):  # the first one comes no further than its first step until it is cancelled
            report(value)
            while job is calls[0]:
                job.check()
                time.sleep(0.01)

        return sampled(pipe, given, num_frames, sampling, limits, job, held)

    monkeypatch.setattr(fill_tab, "fill", slow_at_first)

    def begin(name):
        return tab.on_make(of_pictures(pictures(1), 9), 9, None, "", 1.0, 60, None, 0, visitor(name))

    me, you, third = map(begin, ("me", "you", "third"))
    next(me), next(me), next(you)
    assert "Waiting for one other" in next(you)[1]
    assert "1 others are waiting already" in list(third)[-1][1]
    tab.on_cancel(visitor("me"))
    assert "Made 8 frames" in list(you)[-1][1]  # even before the one ahead has noticed
    assert "Cancelled." in list(me)[-1][1]


def test_a_long_clip_reports_its_steps(site, clip):
    with gr.Blocks():
        tab = LongTab(site, ModelRow(site))
    updates = list(tab.on_make(str(clip), "Extend", 2, 30, 3, None, "", 1.0, 2, 0, visitor("me")))
    assert any("<progress" in text for text, *_ in updates)
    assert "15 frames, 10 a second" in updates[-1][0] and len(read_video(updates[-1][1])[0]) == 15
    updates = list(tab.on_make(str(clip), "Another rate", 2, 24, 3, None, "", 1.0, 2, 0, visitor("me")))
    assert "27 frames, 24 a second" in updates[-1][0] and len(read_video(updates[-1][1])[0]) == 27
    assert (
        "there is no clip yet"
        in list(tab.on_make(None, "Extend", 2, 30, 3, None, "", 1.0, 2, 0, visitor("me")))[-1][0]
    )


def test_messages_cannot_hold_markup():
    from diffusers_mardini.app.views import status

    assert "<img" not in status(for_visitors(ValueError("'<img src=x>.png' is no picture")), bad=True)


def test_the_server_has_limits_and_answers_both_pages(worlds, tmp_path):
    app = make_app(Checkpoints(worlds, False, "cpu", "float32"), Limits(upload_bytes=1000), tmp_path / "room")
    with testclient.TestClient(app) as client:
        assert client.get("/").status_code == client.get("/drive").status_code == 200
        config = client.get("/config").json()
        assert config["analytics_enabled"] is False
        large = client.post("/gradio_api/upload", files={"files": ("large.png", b"\0" * 5000)})
        assert large.status_code == 413
        assert client.get("/gradio_api/file=/etc/passwd").status_code in (403, 404)
    fonts = [font for font in config["stylesheets"] if "http" in font]
    assert not fonts


def test_old_uploads_are_removed(worlds, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers_mardini.app.page.KEEP", (0.2, 0.2))
    app = make_app(Checkpoints(worlds, True, "cpu", "float32"), Limits(), tmp_path / "room")
    with testclient.TestClient(app) as client:
        (path,) = client.post("/gradio_api/upload", files={"files": ("a.png", b"\0" * 500)}).json()
        assert Path(path).is_file() and Path(path).is_relative_to(tmp_path / "room")
        for _ in range(50):
            time.sleep(0.1)
            if not Path(path).exists():
                break
        assert not Path(path).exists()


def test_other_names_of_this_machine_are_refused(worlds, tmp_path):
    """As those of a page that has its own name point here (DNS rebinding)."""
    app = make_app(Checkpoints(worlds, True, "cpu", "float32"), Limits(), tmp_path / "room")
    app.add_middleware(ThisMachineOnly)
    with testclient.TestClient(app) as client:
        for host, code in (
            ("localhost:7860", 200),
            ("127.0.0.1", 200),
            ("[::1]:7860", 200),
            ("evil.example:7860", 400),
            ("", 400),
            ("[", 400),
        ):
            assert client.get("/drive", headers={"host": host}).status_code == code, host
        evil = {"host": "evil.example", "origin": "http://evil.example"}
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/drive/ws", headers=evil):
            pass
        own = {"host": "localhost:7860", "origin": "http://localhost:7860"}
        with client.websocket_connect("/drive/ws", headers=own) as socket:
            assert socket.receive_json()["is"] == "open"


@pytest.mark.parametrize(
    ("host", "behind_proxy", "closed"), [("127.0.0.1", False, False), ("127.0.0.1", True, True), ("::1", False, False)]
)
def test_behind_another_server_visitors_use_what_is_offered(worlds, monkeypatch, capsys, host, behind_proxy, closed):
    """And addresses of version 6 can be listened at, where there are any."""
    made = {}
    monkeypatch.setattr(server, "make_app", lambda checkpoints, *_: made.setdefault("app", Recorder(checkpoints)))
    monkeypatch.setattr(server.uvicorn, "run", lambda app, **_: None)
    with socket_of(host) as port:
        pass
    server.serve(worlds, host, port, behind_proxy=behind_proxy)
    assert made["app"].checkpoints.open_to_others is not closed and made["app"].is_checked is not closed
    assert f"http://{'[::1]' if host == '::1' else host}:{port}/" in capsys.readouterr().out


class Recorder:
    def __init__(self, checkpoints):
        self.checkpoints, self.is_checked = checkpoints, False

    def add_middleware(self, kind):
        self.is_checked = kind is ThisMachineOnly


@contextmanager
def socket_of(host: str):
    """A free port; skips where the machine has no such address."""
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
            yield free.getsockname()[1]
    except OSError:
        pytest.skip(f"nothing can listen at {host} here")


@pytest.mark.parametrize("host, expected", [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
                                            ("192.168.1.2", False), ("my-host", False)])  # fmt: skip
def test_only_loopback_addresses_are_this_machine(host, expected):
    assert is_loopback(host) is expected
