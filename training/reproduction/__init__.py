"""The paper's claims at a size that anyone can run: what its figures and tables need beside `training.evaluate` (docs/results/)."""
