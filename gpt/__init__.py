"""The baseline: a pre-norm GPT with RoPE and SwiGLU, in the Llama layout."""
