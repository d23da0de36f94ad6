"""Data of diffusers-mardini: a checkpoint and clips; its module `demo_files` finds them."""
