"""Programs that train MarDini, and their parts. Run from the checkout with `python -m training.…`; never imported by the plugin."""
