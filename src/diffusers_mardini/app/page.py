"""The page of three tabs, made with Gradio."""

import os


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before Gradio is imported, which reads it once

import gradio as gr

from .fill_tab import FillTab
from .long_tab import LongTab
from .model_row import ModelRow
from .site import Site


TITLE = "MarDini: fill in frames, make clips longer, drive"
ABOUT = (
    "# MarDini\nGive some frames, anywhere; the model samples the others. The small checkpoints each know one little "
    "world: try the examples first."
)
DRIVE = (
    '<iframe id="drive-frame" src="drive" title="Drive inside the model"></iframe>'
    '<p><a href="drive" target="_blank">Open the drive on a page of its own</a></p>'
)
KEEP = (300, 3600)  # seconds: how often to look for old uploads and results of Gradio's, and how old they may become


def theme() -> gr.themes.Base:
    """Return a theme whose fonts are the visitor's own: the defaults would be fetched from elsewhere."""
    return gr.themes.Soft(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def make_page(site: Site) -> gr.Blocks:
    """Lay out the page."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=KEEP) as page:
        gr.Markdown(ABOUT)
        model = ModelRow(site)
        with gr.Tabs():
            with gr.Tab("Fill in", id="fill"):
                FillTab(site, model)
            with gr.Tab("Long", id="long"):
                LongTab(site, model)
            with gr.Tab("Drive", id="drive"):
                gr.HTML(DRIVE)

        def leave(request: gr.Request) -> None:
            site.leave(str(request.session_hash))

        page.unload(leave)
    page.queue(default_concurrency_limit=8)  # the line before the models is that of `Turns`
    return page
