"""Programs that train MarDini, and their parts: `python -m training.…` from the checkout, never imported by src."""
