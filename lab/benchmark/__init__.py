"""How long a training step takes, of what, and against what: the parts of scripts/bench.py."""
