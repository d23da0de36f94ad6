"""Take a person's own clips to a model: read them, cut them, hold some out, choose what to train, present it."""
