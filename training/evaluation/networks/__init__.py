"""Published networks that scores use: LPIPS, Fréchet distances, VBench's consistencies, RIFE."""
