"""Trained models measured beyond their own validation: other text, longer contexts, downstream tasks."""
