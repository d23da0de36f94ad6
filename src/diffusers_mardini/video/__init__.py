"""Clips in and out of files. The only room that names PyAV; `diffusers_mardini.video_io` is its door."""
