"""The engine: trains, evaluates and saves any model that keeps the contract in `engine/models.py`, and opens what was trained.

`session.train` checks everything, opens data and run folder, and makes a `Trainer`; `Trainer.run` is the loop;
`trained.open_trained_run` is for all that comes after. docs/architecture.md is the map.
"""
