"""The configuration of a run: what may be said, how files are read into it, and its page in the docs."""
