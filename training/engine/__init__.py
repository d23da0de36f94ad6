"""Models, gradient steps, optimizers, shards, guards and checkpoints: everything that turns batches into weights."""
