"""Read and write clips. Only this package imports PyAV; its public names are in `diffusers_mardini.video_io`."""
