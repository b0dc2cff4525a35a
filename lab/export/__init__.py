"""A trained run as a folder that transformers loads, and back: Llama's layout for GPT, a model of its own for nGPT."""
