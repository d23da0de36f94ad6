"""The page in real headless Chromium: every tab to a playing video, drives, errors, reloads, two visitors, a phone.

`make test-web` runs it. It needs playwright and Chromium (on Debian `apt install chromium`, or CHROMIUM=path).
"""

import os
import re
import shutil

import numpy as np
import pytest

from diffusers_mardini.app.limits import Limits
from diffusers_mardini.video_io import read_video, write_video
from pipelines_tests.app.worlds import pictures


pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; install it, or set CHROMIUM"),
]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
expect = playwright.expect
PATIENCE = 90_000  # milliseconds: machines that run tests are often busy
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def address(serve):
    return serve(Limits(upload_bytes=500_000, made_frames=100, waiting=4))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Open the page as a new visitor; afterwards nothing was asked of other servers, and no script failed."""
    contexts, elsewhere, failures = [], [], []

    def open_page(path="", to=address, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: elsewhere.append(request.url) if is_elsewhere(request.url) else None)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"{to}/{path}")
        return page

    def is_elsewhere(url):
        return not re.match(r"((http|ws)://127\.0\.0\.1:|data:|blob:)", url)

    yield open_page
    for context in contexts:
        context.close()
    assert not elsewhere and not failures


@pytest.fixture
def files(tmp_path):
    """Two pictures and a clip."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, picture in zip(paths, pictures(2)):
        picture.save(path)
    return [*map(str, paths), str(write_video(tmp_path / "clip.mp4", pictures(12), 10))]


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def drop(page, files):
    page.locator("#fill-drop input[type=file]").set_input_files(files)


def make(page, name="fill"):
    page.locator(f"#{name}-make").click()


def strip(page):
    """Return the state of each place."""
    return page.locator("#strip .place").evaluate_all("places => places.map(place => place.className.split(' ')[1])")


def expect_strip(page, states):
    expect(page.locator("#strip .place")).to_have_class([f"place {state}" for state in states])


def expect_playing(page, name):
    """Wait until a video plays, goes on, and is set to loop."""
    page.wait_for_function(
        """name => {
            const video = document.querySelector(`#${name}-video video`);
            return video && !video.paused && video.loop && video.videoWidth > 0 && video.currentTime > 0;
        }""",
        arg=name,
        polling=200,  # a page in the background draws no frames
    )


def video_address(page, name="fill"):
    return page.locator(f"#{name}-video video").evaluate("video => video.currentSrc")


def test_two_pictures_become_a_playing_video_beside_a_cross_fade(visit, files, tmp_path):
    page = visit()
    drop(page, files[:2])
    expect_strip(page, ["given", *["empty"] * 7, "given"])
    expect(page.locator("#fill-status")).to_contain_text("2 given, 7 to make")
    make(page)
    expect(page.locator("#fill-status progress")).to_be_visible()
    expect(page.locator("#strip .place.making")).to_have_count(7)
    expect_strip(page, ["given", *["made"] * 7, "given"])
    expect_playing(page, "fill")
    canvas = page.locator("#fill-compare canvas")
    page.locator("#fill-compare .at").fill("5")  # holds this frame
    halves = []
    for line in ("0", "100"):
        page.locator("#fill-compare .wipe").fill(line)
        page.wait_for_timeout(200)
        halves.append(canvas.evaluate("canvas => canvas.toDataURL()"))
    assert halves[0] != halves[1]
    expect(page.locator("#fill-compare figcaption")).to_contain_text("right: cross-fade")
    for suffix, count in (("mp4", 9), ("gif", 9)):
        with page.expect_download() as download:
            page.locator(f"#fill-{suffix}").click()
        download.value.save_as(tmp_path / f"saved.{suffix}")
        assert len(read_video(tmp_path / f"saved.{suffix}")[0]) == count


def test_a_picture_is_dropped_onto_a_place_and_taken_off_again(visit, files):
    page = visit()
    page.locator("#strip [data-place='3'] input").set_input_files(files[0])
    expect_strip(page, [*["empty"] * 3, "given", *["empty"] * 5])
    data = page.evaluate_handle(
        """async uri => {
            const data = new DataTransfer();
            const bytes = await (await fetch(uri)).blob();
            data.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
            return data;
        }""",
        page.locator("#strip [data-place='3'] img").get_attribute("src"),
    )
    page.locator("#strip [data-place='8']").dispatch_event("drop", {"dataTransfer": data})
    expect_strip(page, [*["empty"] * 3, "given", *["empty"] * 4, "given"])
    page.get_by_role("button", name="Take frame 4 off").click()
    expect_strip(page, [*["empty"] * 8, "given"])
    make(page)
    expect_playing(page, "fill")


def test_a_clip_is_laid_by_patterns_and_examples_work(visit, files):
    page = visit()
    drop(page, files[2:])
    expect_strip(page, ["given", *["empty"] * 7, "given"])
    page.get_by_role("radio", name="first half").check()
    expect_strip(page, [*["given"] * 5, *["empty"] * 4])
    page.locator("#fill-example-1").click()  # is read while the next click is made already
    page.get_by_role("radio", name="every fourth").check()
    expect_strip(page, ["given", *["empty"] * 3, "given", *["empty"] * 3, "given"])
    make(page)
    expect_playing(page, "fill")


def test_another_checkpoint_is_chosen(visit, files):
    page = visit()
    page.get_by_text("Model: still, or another").click()
    page.get_by_label("Checkpoint (a folder or a Hub id)").click()
    page.get_by_role("option", name="driven").click()
    drop(page, files[:1])
    make(page)
    expect_playing(page, "fill")


def test_a_checkpoint_that_is_none_is_said(visit, files):
    page = visit()
    page.get_by_text("Model: still, or another").click()
    field = page.get_by_label("Checkpoint (a folder or a Hub id)")
    field.fill("/no/such/folder")
    field.press("Enter")
    told = page.locator("#fill-status [role=alert]")
    expect(told).to_contain_text("'/no/such/folder' cannot be read as a checkpoint")
    drop(page, files[:1])
    expect_strip(page, ["given", *["empty"] * 8])
    make(page)
    expect(told).to_contain_text("'/no/such/folder' cannot be read as a checkpoint")


def test_what_cannot_be_used_is_said_and_the_page_goes_on(visit, files, tmp_path):
    page = visit()
    make(page)
    expect(page.locator("#fill-status [role=alert]")).to_contain_text("nothing is given")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    drop(page, [str(tmp_path / "broken.png")])
    expect(page.locator("#fill-status [role=alert]")).to_contain_text("'broken.png' is no picture")
    np.random.default_rng(0).integers(0, 255, 600_000, np.uint8).tofile(tmp_path / "large.png")
    page.locator("#strip [data-place='2'] input").set_input_files(str(tmp_path / "large.png"))
    expect(page.locator("#fill-status [role=alert]")).to_contain_text("the upload failed; it may be too large")
    page.locator("#strip [data-place='2'] input").set_input_files(files[0])
    expect_strip(page, ["empty", "empty", "given", *["empty"] * 6])


def test_a_clip_becomes_slow_motion_smoother_and_longer(visit, files):
    page = visit()
    tab(page, "Long")
    make(page, "long")
    expect(page.locator("#long-status [role=alert]")).to_contain_text("there is no clip yet")
    page.locator("#long-clip input[type=file]").set_input_files(files[2])
    page.locator("#long-clip video").wait_for()
    make(page, "long")
    expect(page.locator("#long-status progress")).to_be_visible()
    expect(page.locator("#long-status")).to_contain_text("23 frames, 10 a second")
    expect_playing(page, "long")
    slow = video_address(page, "long")
    page.get_by_role("radio", name="Another rate").check()
    page.get_by_role("slider", name="Frames a second").wait_for()
    make(page, "long")
    expect(page.locator("#long-status")).to_contain_text("34 frames, 30 a second")
    page.wait_for_function("before => document.querySelector('#long-video video').currentSrc !== before", arg=slow)
    slow = video_address(page, "long")
    page.get_by_role("radio", name="Extend").check()
    expect(page.get_by_role("slider", name="New frames at the end")).to_be_visible()
    make(page, "long")
    expect(page.locator("#long-status")).to_contain_text("28 frames, 10 a second")
    page.wait_for_function("before => document.querySelector('#long-video video').currentSrc !== before", arg=slow)
    expect_playing(page, "long")


def test_long_work_is_cancelled_and_limited(visit, files):
    page = visit()
    tab(page, "Long")
    page.locator("#long-example-0").click()
    page.locator("#long-clip video").wait_for()
    page.get_by_role("radio", name="Extend").check()
    steps = page.get_by_role("spinbutton", name="Steps of each window")
    steps.fill("100")
    steps.press("Enter")
    make(page, "long")
    expect(page.locator("#long-status progress")).to_be_visible()
    page.locator("#long-cancel").click()
    expect(page.locator("#long-status")).to_contain_text("Cancelled.")
    page.get_by_role("radio", name="Slow motion").check()
    factor = page.get_by_role("spinbutton", name="Times as many frames")
    factor.fill("8")
    factor.press("Enter")
    make(page, "long")
    expect(page.locator("#long-status")).to_contain_text("this page makes at most 100")


def test_a_reload_in_the_middle_ends_the_work_and_the_page_starts_anew(visit, files, serve):
    page = visit()
    tab(page, "Long")
    page.locator("#long-example-0").click()
    page.locator("#long-clip video").wait_for()
    page.get_by_role("radio", name="Extend").check()
    steps = page.get_by_role("spinbutton", name="Steps of each window")
    steps.fill("100")
    steps.press("Enter")
    make(page, "long")
    expect(page.locator("#long-status progress")).to_be_visible()
    ended = serve.ended()
    page.reload()
    drop(page, files[:2])
    expect_strip(page, ["given", *["empty"] * 7, "given"])
    for _ in range(100):
        page.wait_for_timeout(100)
        if serve.ended() > ended:
            break
    assert serve.ended() == ended + 1
    make(page)
    expect_playing(page, "fill")


def test_visitors_wait_in_a_line_of_bounded_length(visit, files, serve):
    busy = serve(Limits(waiting=1))
    pages = [visit(to=busy) for _ in range(3)]
    for page in pages:
        drop(page, files[:1])
        expect_strip(page, ["given", *["empty"] * 8])
    tab(pages[0], "Long")
    pages[0].locator("#long-example-0").click()
    pages[0].locator("#long-clip video").wait_for()
    steps = pages[0].get_by_role("spinbutton", name="Steps of each window")
    steps.fill("100")
    steps.press("Enter")
    make(pages[0], "long")
    expect(pages[0].locator("#long-status progress")).to_be_visible()
    make(pages[1])
    expect(pages[1].locator("#fill-status")).to_contain_text("Waiting for one other")
    make(pages[2])
    expect(pages[2].locator("#fill-status [role=alert]")).to_contain_text("others are waiting already")
    pages[0].locator("#long-cancel").click()
    expect_playing(pages[1], "fill")


def test_two_visitors_at_once_see_their_own_results(visit, files, tmp_path):
    one, two = visit(), visit()
    drop(one, files[:1])
    drop(two, files[1:2])
    for page in (one, two):
        expect_strip(page, ["given", *["empty"] * 8])
    make(one)
    make(two)
    seen = []
    for page in (one, two):
        expect_playing(page, "fill")
        seen.append(page.request.get(video_address(page)).body())
    assert seen[0] != seen[1]
    starts = [page.locator("#strip [data-place='0'] img").get_attribute("src") for page in (one, two)]
    assert starts[0] != starts[1] and strip(one) == strip(two)


def drive(page, checkpoint="driven"):
    page.locator("#checkpoint option").first.wait_for(state="attached")
    page.locator("#checkpoint").select_option(label=checkpoint)
    page.locator("#steps").fill("1")
    page.locator("#start").click()


def pixels(page, index):
    """Return the canvas at the first frame from `index` on."""
    page.wait_for_function("index => Number(document.querySelector('#screen').dataset.index) >= index", arg=index)
    return np.array(
        page.locator("#screen").evaluate(
            "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
        )
    )


def test_driving_left_differs_from_driving_right(visit):
    ends = {}
    for key in ("ArrowLeft", "ArrowRight"):
        page = visit("drive")
        page.keyboard.down(key)
        drive(page)
        first = pixels(page, 0)
        page.locator("#screen").press("Shift")  # the focus is on the scene
        ends[key] = pixels(page, 24)
        expect(page.locator("#keys")).to_have_text({"ArrowLeft": "left", "ArrowRight": "right"}[key])
        expect(page.locator("#rate")).to_contain_text("of 10 frames/s")
        page.keyboard.up(key)
        expect(page.locator("#keys")).to_have_text("none")
        assert np.abs(first - ends[key]).mean() > 1
        page.context.close()
    assert np.abs(ends["ArrowLeft"] - ends["ArrowRight"]).mean() > 5


def test_a_drive_shows_its_latency_pauses_restarts_and_records(visit, tmp_path):
    page = visit("drive")
    drive(page)
    pixels(page, 4)
    page.keyboard.down("w")
    expect(page.locator("#latency")).to_have_text(re.compile(r"^\d+ ms$"))
    page.keyboard.up("w")
    page.locator("#record").click()
    before = int(page.locator("#index").inner_text())
    pixels(page, before + 12)
    page.locator("#pause").click()
    page.wait_for_timeout(1500)
    stopped = page.locator("#index").inner_text()
    page.wait_for_timeout(700)
    assert page.locator("#index").inner_text() == stopped
    with page.expect_download() as download:
        page.locator("#save").click()
    download.value.save_as(tmp_path / "drive.mp4")
    frames, fps = read_video(tmp_path / "drive.mp4")
    assert len(frames) >= 8 and fps == 10
    page.keyboard.press("r")
    expect(page.locator("#index")).to_have_text("0")
    page.locator("#pause").click()
    pixels(page, 4)


def test_the_tab_drives_and_says_kindly_what_cannot_be_driven(visit, files):
    page = visit()
    tab(page, "Drive")
    frame = page.frame_locator("#drive-frame")
    expect(frame.locator("#checkpoint")).to_have_value(re.compile("driven$"))  # the first that can be driven
    frame.locator("#checkpoint").select_option(label="still")
    frame.locator("#start").click()
    expect(frame.locator("#message")).to_contain_text("still cannot be driven: it was trained without actions")
    frame.locator("#checkpoint").select_option(label="driven")
    frame.locator("#file").set_input_files(files[2])
    expect(frame.locator("#from")).to_have_value("file")
    frame.locator("#start").click()
    expect(frame.locator("#index")).not_to_have_text("0")
    page.keyboard.down("ArrowUp")  # goes to the scene, which has the focus
    expect(frame.locator("#keys")).to_have_text("up")


def test_a_bad_file_is_said_and_another_start_works(visit, tmp_path):
    page = visit("drive")
    page.locator("#checkpoint option").first.wait_for(state="attached")
    (tmp_path / "notes.txt").write_text("hello")
    page.locator("#file").set_input_files(str(tmp_path / "notes.txt"))
    page.locator("#start").click()
    expect(page.locator("#message.bad")).to_contain_text("'notes.txt'")
    page.locator("#from").select_option(index=0)
    drive(page)
    pixels(page, 4)


def test_a_phone_shows_everything_and_drives_by_touch(visit, files):
    page = visit(**PHONE)
    for name in ("Fill in", "Long", "Drive"):
        tab(page, name)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tab(page, "Fill in")
    drop(page, files[:2])
    expect_strip(page, ["given", *["empty"] * 7, "given"])
    make(page)
    expect_playing(page, "fill")
    page = visit("drive", **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    drive(page)
    pixels(page, 4)
    left = page.get_by_role("button", name="Steer left")
    left.dispatch_event("pointerdown", {"pointerId": 1, "isPrimary": True})
    expect(page.locator("#keys")).to_have_text("left")
    expect(left).to_have_attribute("aria-pressed", "true")
    left.dispatch_event("pointerup", {"pointerId": 1})
    expect(page.locator("#keys")).to_have_text("none")


UNNAMED = """() => [...document.querySelectorAll("button, input, select, textarea, img, canvas, video, iframe")]
    .filter(e => e.checkVisibility() && e.type !== "hidden")
    .filter(e => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.title || e.alt
        || (e.labels && [...e.labels].some(l => l.textContent.trim())) || e.textContent.trim()
        || e.closest("[aria-label], label, fieldset, .block")))
    .map(e => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("path", ["", "drive"])
def test_everything_to_operate_has_a_name_for_screen_readers(visit, path):
    page = visit(path)
    page.wait_for_timeout(1000)
    assert page.evaluate(UNNAMED) == []


def test_the_keyboard_alone_fills_in(visit, files):
    page = visit()
    page.locator("#fill-example-0").focus()
    page.keyboard.press("Enter")
    expect_strip(page, ["given", *["empty"] * 7, "given"])
    page.locator("#fill-make").focus()
    page.keyboard.press("Enter")
    expect_playing(page, "fill")
