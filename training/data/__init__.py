"""Clips: where they come from, how they are read, and how they are cached as latents."""
