"""Text from trained runs: what `sample.py` reads, draws and shows."""
