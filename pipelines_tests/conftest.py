"""Keep every test away from the network: what is not here counts as missing at once, instead of after minutes."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported, which reads it once
