"""Published networks that scores ask: LPIPS, Fréchet distances, VBench's consistencies, RIFE."""
