"""Predict a training step on a GPU that is not there: python scripts/predict_gpu.py [card=h100] [key=value ...]

    card=h100          a100 | h100 | h200
    arms=gpt,ngpt      the arms; ratios are to the first
    json=PATH          write every kernel, its bytes and FLOPs as JSON

Every other key is train.py's: size= context= micro_batch_size= attention=flash model.*= and so on. torch compiles each
arm's block, loss and renormalization for the card and the bytes of every kernel are counted: these are what a card would
get. The times are a roofline: predictions. One GPU, bf16. "fits" is the largest micro batch, a power of two, by the dry
run's estimate. It needs PyTorch's CPU build, a C++ compiler and pip install -r requirements-predict.txt. On a GPU,
scripts/bench.py measures.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from cli.entry import ending_in_one_line

if __name__ == "__main__":
    with ending_in_one_line():
        if {"-h", "--help"} & set(sys.argv[1:]):
            print((__doc__ or "python -OO keeps no help; start Python without it").strip())
        else:
            from lab.prediction.cli import main

            main(sys.argv[1:])
