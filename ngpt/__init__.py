"""The normalized Transformer (arXiv 2410.01131). Read `model.py` beside `gpt/model.py`: their diff is the paper."""
