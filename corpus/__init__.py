"""Text to token files: sources, tokenizer, the parallel pass, and the reader that the engine imports."""
