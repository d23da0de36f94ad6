"""The page as a Space of Hugging Face (SDK gradio); docs/app.md says which files it needs.

Checkpoints are those that `mardini app` finds; MARDINI_CHECKPOINT may name one, such as a Hub id.
"""

import os

from diffusers_mardini.cli import app


if __name__ == "__main__":
    app(["app", "--host", "0.0.0.0", "--port", os.environ.get("GRADIO_SERVER_PORT", "7860"), "--no-browser"])
