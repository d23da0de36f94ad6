"""What a run shows and keeps while it trains: the panel, records, held-out losses and scores, samples."""
