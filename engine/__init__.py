"""The engine: trains, evaluates, saves and samples any model that keeps the contract in `engine/models.py`."""
