"""What is done with a person's own clips before a model is trained: read them, cut them, hold some out."""
