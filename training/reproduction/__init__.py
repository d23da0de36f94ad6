"""The figures and tables of the paper, reproduced at a size that anyone can run; beside `training.evaluate`, for docs/results/."""
