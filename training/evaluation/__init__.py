"""The parts of `training.evaluate` and `training.vbench`: windows, painting them, keeping what is done, published networks, scores, tables."""
