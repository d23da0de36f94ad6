"""The tab "Fill in": pictures on a strip of places, and the frames between them, seen as they are sampled."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..demo_files import demo_clips
from ..video_io import natural_key
from .given import PATTERNS, Given, of_clip, of_pictures
from .model_row import ModelRow
from .sampling import Sampling, at_rate, cross_fade, fill, fitted
from .site import Site, for_visitors, told
from .uploads import read_picture_upload, read_upload
from .views import comparison, progress_line, status, strip


STATIC = Path(__file__).parent / "static"
BEGIN = "Drop pictures or a clip, or take an example, and press Make."
FIRST_FRAMES = 9


class FillTab:
    """Lay the tab out, and answer its events."""

    def __init__(self, site: Site, model: ModelRow):
        self.site = site
        self.given = gr.State(Given(), time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=3):
                self.drop = gr.File(
                    label="Drop pictures, or a clip",
                    file_count="multiple",
                    file_types=["image", "video"],
                    height=180,
                    elem_id="fill-drop",
                )
            with gr.Column(scale=2):
                self.pattern = gr.Radio(list(PATTERNS), value="first and last", label="Of a clip, give")
                with gr.Row():
                    self.examples = [
                        gr.Button(f"Example {i + 1}", size="sm", min_width=60, elem_id=f"fill-example-{i}")
                        for i in range(len(demo_clips()[:3]))
                    ]
        self.frames = gr.Slider(
            2, site.limits.window_frames, value=FIRST_FRAMES, step=1, label="Frames of the window, given ones included"
        )
        self.strip = gr.HTML(
            value=strip(FIRST_FRAMES, {}, ()),
            html_template=(STATIC / "strip.html").read_text(encoding="utf-8"),
            css_template=(STATIC / "strip.css").read_text(encoding="utf-8"),
            js_on_load=(STATIC / "strip.js").read_text(encoding="utf-8"),
            elem_id="strip",
        )
        with gr.Accordion("How to sample", open=False), gr.Row():
            self.steps = gr.Slider(1, site.limits.steps, value=25, step=1, label="Steps")
            self.guidance = gr.Number(None, label="Guidance (empty: the task's own)", minimum=0, maximum=20)
            self.seed = gr.Number(0, label="Seed", precision=0)
        with gr.Row():
            self.make = gr.Button("Make", variant="primary", elem_id="fill-make")
            self.cancel = gr.Button("Cancel", elem_id="fill-cancel")
        self.status = gr.HTML(status(BEGIN), elem_id="fill-status")
        with gr.Row():
            self.video = gr.Video(
                label="Result",
                autoplay=True,
                loop=True,
                interactive=False,
                height=380,
                elem_id="fill-video",
                min_width=300,
                buttons=[],
            )
            self.compare = gr.HTML(
                value={},
                html_template=(STATIC / "compare.html").read_text(encoding="utf-8"),
                css_template=(STATIC / "compare.css").read_text(encoding="utf-8"),
                js_on_load=(STATIC / "compare.js").read_text(encoding="utf-8"),
                elem_id="fill-compare",
                min_width=300,
            )
        with gr.Row():
            self.mp4 = gr.DownloadButton("Download mp4", interactive=False, elem_id="fill-mp4")
            self.gif = gr.DownloadButton("Download gif", interactive=False, elem_id="fill-gif")
        self._connect(model)

    def _connect(self, model: ModelRow) -> None:
        shown = [self.given, self.strip, self.status]
        where = [self.given, self.frames]
        # One after the other, in the order of the clicks: each begins with what the one before has given.
        lay = {"outputs": shown, "concurrency_id": "strip", "concurrency_limit": 1, "api_name": False}
        self.drop.upload(
            self.on_drop,
            [self.drop, self.frames, self.pattern, model.checkpoint],
            **{**lay, "outputs": [*shown, self.drop]},
        )
        for number, button in enumerate(self.examples):
            button.click(partial(self.on_example, number), [self.frames, self.pattern, model.checkpoint], **lay)
        self.pattern.input(self.on_pattern, [*where, self.pattern], **lay)
        # Not `release`, which the keyboard does not cause.
        self.frames.input(self.on_pattern, [*where, self.pattern], trigger_mode="always_last", **lay)
        self.strip.upload(self.on_place, where, **lay)
        self.strip.clear(self.on_take_off, where, **lay)
        model.checkpoint.change(self.on_checkpoint, model.checkpoint, [self.frames, self.status], api_name=False).then(
            self.on_window, [*where, self.pattern, model.checkpoint], **lay
        )
        self.make.click(
            self.on_make,
            [*where, *model.inputs, self.steps, self.guidance, self.seed],
            [self.strip, self.status, self.video, self.compare, self.mp4, self.gif],
            concurrency_id="model",
            concurrency_limit=None,
            show_progress="hidden",
            api_name=False,
        )
        self.cancel.click(self.on_cancel, None, None, queue=False, api_name=False)

    # Events. The first three results are what is given, the strip, and the line below it.

    def on_drop(self, files: list[str] | None, num_frames: int, pattern: str, checkpoint: str) -> Any:
        """Lay dropped files onto the strip."""
        try:
            return *self._laid(self._read(files or [], num_frames, pattern, checkpoint), num_frames), None
        except Exception as error:
            return gr.skip(), gr.skip(), status(for_visitors(error), bad=True), None

    def on_example(self, number: int, num_frames: int, pattern: str, checkpoint: str) -> Any:
        """Lay an example onto the strip."""
        try:
            given = self._of_clip_file(demo_clips()[number], num_frames, pattern, checkpoint)
            return self._laid(given, num_frames)
        except Exception as error:
            return gr.skip(), gr.skip(), status(for_visitors(error), bad=True)

    def on_pattern(self, given: Given, num_frames: int, pattern: str) -> Any:
        """Lay the same clip by another pattern, or onto another number of places."""
        try:
            if given.clip:
                return self._laid(of_clip(given.clip, num_frames, pattern, given.file), num_frames)
            return self._laid(given.within(num_frames), num_frames)
        except Exception as error:
            return gr.skip(), gr.skip(), status(for_visitors(error), bad=True)

    def on_place(self, given: Given, num_frames: int, event: gr.EventData) -> Any:
        """Put a picture onto one place."""
        try:
            path, place = uploaded(str(event.path)), int(event.place)
            if not 0 <= place < num_frames:
                raise ValueError(f"there is no place {place + 1}; the strip has {num_frames}")
            given = given.put(place, read_picture_upload(path, self.site.limits))
            return self._laid(given, num_frames)
        except Exception as error:
            return gr.skip(), gr.skip(), status(for_visitors(error), bad=True)

    def on_take_off(self, given: Given, num_frames: int, event: gr.EventData) -> Any:
        """Take the picture off one place."""
        return self._laid(given.take_off(int(event.place)), num_frames)

    def on_checkpoint(self, checkpoint: str) -> Any:
        """Show as many places as the window of another checkpoint has."""
        try:
            frames = self.site.checkpoints.lend(checkpoint).trained_window.frames
        except Exception as error:
            return gr.skip(), status(for_visitors(error), bad=True)
        frames = min(frames, self.site.limits.window_frames)
        return frames, status(f"This checkpoint was trained for windows of {frames} frames.")

    def on_window(self, given: Given, num_frames: int, pattern: str, checkpoint: str) -> Any:
        """Lay what was given onto the strip of another checkpoint, a clip at its rate."""
        if given.file is None:
            return *self._laid(given.within(num_frames), num_frames)[:2], gr.skip()
        try:
            self.site.checkpoints.lend(checkpoint)
        except Exception:  # which `on_checkpoint` has told
            return gr.skip(), gr.skip(), gr.skip()
        try:
            if not given.file.is_file():
                raise ValueError(
                    "the clip is not here any more, and this checkpoint takes another rate; give it again"
                )
            return self._laid(self._of_clip_file(given.file, num_frames, pattern, checkpoint), num_frames)
        except Exception as error:
            return *self._laid(Given(), num_frames)[:2], status(for_visitors(error), bad=True)

    def on_make(
        self,
        given: Given,
        num_frames: int,
        checkpoint: str,
        lora: str,
        scale: float,
        steps: int,
        guidance: float | None,
        seed: int,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Sample, showing frames as they come."""
        sampling = Sampling(int(steps), guidance, int(seed or 0))
        made = self._made(given, int(num_frames), checkpoint, lora, scale, sampling, str(request.session_hash))
        rest = [gr.skip()] * 4
        kept = given.within(int(num_frames)).pictures
        # The strip may show frames that were half made.
        yield from told(made, lambda message: (strip(int(num_frames), kept, kept), status(message, bad=True), *rest))

    def on_cancel(self, request: gr.Request) -> None:
        """End the work of this session."""
        self.site.jobs.cancel(str(request.session_hash))

    def _made(
        self, given: Given, num_frames: int, checkpoint: str, lora: str, scale: float, sampling: Sampling, session: str
    ) -> Iterator[Any]:
        rest = [gr.skip()] * 4
        given = given.within(num_frames)
        yield strip(num_frames, given.pictures, given.pictures), status("Loading the checkpoint …"), *rest
        job = self.site.jobs.begin(session)
        pipe = self.site.checkpoints.lend(checkpoint, lora, scale)

        def work(report: Any) -> Any:
            return fill(pipe, given.pictures, num_frames, sampling, self.site.limits, job, report)

        frames = []
        for kind, value in self.site.work(job, work):
            if kind == "result":
                frames = value
                continue
            places = gr.skip()
            if kind == "report" and value.preview is not None:
                pictures = dict(enumerate(value.preview)) | given.pictures
                places = strip(num_frames, pictures, given.pictures, "making")
            yield places, progress_line(kind, value), *rest
        fps = pipe.trained_window.fps or 8
        mp4, gif = self.site.write_results(session, frames, fps)
        pictures = dict(zip(given.pictures, fitted(list(given.pictures.values()), frames[0].size)))
        name = "cross-fade" if len(pictures) > 1 else "the given frame, held"
        yield (
            strip(num_frames, dict(enumerate(frames)), given.pictures),
            status(f"Made {num_frames - len(pictures)} frames, {fps:g} a second."),
            str(mp4),
            comparison(frames, cross_fade(pictures, num_frames), fps, name),
            gr.DownloadButton(value=str(mp4), interactive=True),
            gr.DownloadButton(value=str(gif), interactive=True),
        )

    def _laid(self, given: Given, num_frames: int) -> tuple[Given, list, str]:
        count = len(given.pictures)
        text = f"{count} given, {num_frames - count} to make. Press Make." if count else BEGIN
        return given, strip(int(num_frames), given.pictures, given.pictures), status(text)

    def _read(self, files: list[str], num_frames: int, pattern: str, checkpoint: str) -> Given:
        paths = sorted(map(Path, files), key=natural_key)
        if len(paths) == 1:
            return self._of_clip_file(paths[0], num_frames, pattern, checkpoint)
        if len(paths) > self.site.limits.window_frames:
            raise ValueError(f"{len(paths)} files are too many; give at most {self.site.limits.window_frames - 1}")
        return of_pictures([read_picture_upload(path, self.site.limits) for path in paths], num_frames)

    def _of_clip_file(self, path: Path, num_frames: int, pattern: str, checkpoint: str) -> Given:
        frames, rate = read_upload(path, self.site.limits)
        if len(frames) == 1:
            return of_pictures(frames, num_frames)
        trained = self.site.checkpoints.lend(checkpoint).trained_window
        frames = at_rate(frames, rate, trained.fps)[: self.site.limits.window_frames]
        return of_clip(frames, num_frames, pattern, path)


def uploaded(path: str) -> Path:
    """Return the path of an upload that the browser names; refuse any other file of this machine."""
    folder, file = Path(gr.utils.get_upload_folder()).resolve(), Path(path).resolve()
    if not path or not file.is_relative_to(folder) or not file.is_file():
        raise ValueError("the upload failed; it may be too large. Try again with a smaller file")
    return file
