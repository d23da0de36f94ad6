"""Monitoring of a run while it trains: the panel, records, held-out losses and scores, samples."""
