"""The parts of `training.evaluate` and `training.vbench`: windows, methods, sampling, scores, networks, tables."""
