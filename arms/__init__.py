"""Variants of the two models for ablations and control arms; the models themselves know nothing of them.

Each variant is one of the two models with a few modules put in the place of its own.
"""
