"""Sweeps: many runs of train.py from one YAML file, on this machine or as a Slurm array."""
