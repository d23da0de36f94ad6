"""The page as a Space of Hugging Face (SDK gradio); docs/app.md says which files it needs.

The names of the checkpoints stand in MARDINI_CHECKPOINTS, separated by spaces; by default those of this repository.
"""

import os

from diffusers_mardini.app.server import serve


if __name__ == "__main__":
    serve(os.environ.get("MARDINI_CHECKPOINTS", "").split(), host="0.0.0.0", port=int(os.environ.get("PORT", "7860")))
