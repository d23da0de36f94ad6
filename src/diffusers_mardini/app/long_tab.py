"""The tab "Long": slow motion, another rate and extension of a clip, window by window, with progress and cancel."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..demo_files import demo_clips
from .model_row import ModelRow
from .sampling import Sampling, lengthen
from .site import Site, told
from .uploads import read_upload
from .views import progress_line, status


TASKS = {"Slow motion": "slow", "Another rate": "retime", "Extend": "extend"}


class LongTab:
    """Lay the tab out, and answer its events."""

    def __init__(self, site: Site, model: ModelRow):
        self.site = site
        with gr.Row():
            with gr.Column():
                self.clip = gr.Video(
                    label="Clip", sources=["upload"], include_audio=True, height=320, elem_id="long-clip"
                )
                with gr.Row():
                    self.examples = [
                        gr.Button(f"Example {i + 1}", size="sm", min_width=60, elem_id=f"long-example-{i}")
                        for i in range(len(demo_clips()[:3]))
                    ]
            with gr.Column():
                self.task = gr.Radio(list(TASKS), value="Slow motion", label="What to make")
                self.factor = gr.Slider(2, 8, value=2, step=1, label="Times as many frames")
                self.fps = gr.Slider(1, 120, value=30, step=1, label="Frames a second", visible=False)
                self.new = gr.Slider(1, 128, value=16, step=1, label="New frames at the end", visible=False)
                self.amounts = [self.factor, self.fps, self.new]  # in the order of TASKS
                self.steps = gr.Slider(1, site.limits.steps, value=10, step=1, label="Steps of each window")
                self.seed = gr.Number(0, label="Seed", precision=0)
                with gr.Row():
                    self.make = gr.Button("Make", variant="primary", elem_id="long-make")
                    self.cancel = gr.Button("Cancel", elem_id="long-cancel")
        self.status = gr.HTML(status("Give a clip, and press Make."), elem_id="long-status")
        self.video = gr.Video(
            label="Result", autoplay=True, loop=True, interactive=False, height=380, elem_id="long-video", buttons=[]
        )
        with gr.Row():
            self.mp4 = gr.DownloadButton("Download mp4", interactive=False, elem_id="long-mp4")
            self.gif = gr.DownloadButton("Download gif", interactive=False, elem_id="long-gif")
        self._connect(model)

    def _connect(self, model: ModelRow) -> None:
        for number, button in enumerate(self.examples):
            button.click(partial(self.on_example, number), None, self.clip, api_name=False)
        self.task.change(self.on_task, self.task, self.amounts, api_name=False)
        self.make.click(
            self.on_make,
            [self.clip, self.task, *self.amounts, *model.inputs, self.steps, self.seed],
            [self.status, self.video, self.mp4, self.gif],
            concurrency_id="model",
            concurrency_limit=None,
            show_progress="hidden",
            api_name=False,
        )
        self.cancel.click(self.on_cancel, None, None, queue=False, api_name=False)

    def on_example(self, number: int) -> str:
        """Take an example as the clip."""
        return str(demo_clips()[number].resolve())

    def on_task(self, task: str) -> list[Any]:
        """Show the slider of a task."""
        return [gr.update(visible=task == name) for name in TASKS]

    def on_make(
        self,
        clip: str | None,
        task: str,
        factor: int,
        fps: int,
        new: int,
        checkpoint: str,
        lora: str,
        scale: float,
        steps: int,
        seed: int,
        request: gr.Request,
    ) -> Iterator[Any]:
        """Make the longer clip."""
        amount = int(dict(zip(TASKS, (factor, fps, new)))[task])
        sampling, session = Sampling(int(steps), None, int(seed or 0)), str(request.session_hash)
        made = self._made(clip, TASKS[task], amount, checkpoint, lora, scale, sampling, session)
        yield from told(made, lambda message: (status(message, bad=True), gr.skip(), gr.skip(), gr.skip()))

    def on_cancel(self, request: gr.Request) -> None:
        """End the work of this session."""
        self.site.jobs.cancel(str(request.session_hash))

    def _made(
        self,
        clip: str | None,
        task: str,
        amount: int,
        checkpoint: str,
        lora: str,
        scale: float,
        sampling: Sampling,
        session: str,
    ) -> Iterator[Any]:
        if not clip:
            raise ValueError("there is no clip yet; drop one, or take an example")
        rest = [gr.skip()] * 3
        yield status("Reading the clip …"), *rest
        job = self.site.jobs.begin(session)
        pipe = self.site.checkpoints.lend(checkpoint, lora, scale)

        def work(report: Any) -> Any:
            # In its turn: decoded frames fill memory.
            frames, rate = read_upload(Path(clip), self.site.limits, job.check)
            return lengthen(pipe, frames, rate, task, amount, sampling, self.site.limits, job, report)

        made, fps = [], 8.0
        for kind, value in self.site.work(job, work):
            if kind == "result":
                made, fps = value
            else:
                yield progress_line(kind, value), *rest
        mp4, gif = self.site.write_results(session, made, fps)
        yield (
            status(f"{len(made)} frames, {fps:g} a second.{_about_pace(task, fps, pipe.trained_window.fps)}"),
            str(mp4),
            gr.DownloadButton(value=str(mp4), interactive=True),
            gr.DownloadButton(value=str(gif), interactive=True),
        )


def _about_pace(task: str, fps: float, trained: float | None) -> str:
    """Say so if a clip that was extended is slower than what the checkpoint was trained on."""
    if task != "extend" or not trained or fps > 0.9 * trained:
        return ""
    return f" The checkpoint was trained on {trained:g} a second, so what follows moves at another pace than the clip."
