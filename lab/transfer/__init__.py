"""Rates that transfer: the optimum of a small sweep, and the command of the large run that it serves."""
