"""The parts of `training.evaluate` and `training.vbench`: windows, sampling them, keeping what is done, published networks, scores, tables."""
