"""Data of diffusers-mardini: checkpoints and clips; its module `demo_files` finds them."""
