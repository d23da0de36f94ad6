"""What turns batches into weights: models, optimizers, shards, guards, checkpoints."""
