"""The row above the tabs: which checkpoint, and which LoRA."""

from pathlib import Path

import gradio as gr

from .site import Site


class ModelRow:
    """Choose the checkpoint; others than the offered ones only where the page is open to them."""

    def __init__(self, site: Site):
        mine = site.checkpoints.open_to_others
        with gr.Accordion(f"Model: {Path(site.checkpoints.known[0]).name}, or another", open=False), gr.Row():
            self.checkpoint = gr.Dropdown(
                site.checkpoints.choices,
                value=site.checkpoints.known[0],
                label="Checkpoint (a folder or a Hub id)" if mine else "Checkpoint",
                allow_custom_value=mine,
                elem_id="checkpoint",
            )
            self.lora = gr.Textbox("", label="LoRA (a folder or a Hub id; empty for none)", visible=mine)
            self.scale = gr.Slider(0, 2, value=1, step=0.05, label="Scale of the LoRA", visible=mine)

    @property
    def inputs(self) -> list:
        """The components to pass to whatever samples."""
        return [self.checkpoint, self.lora, self.scale]
