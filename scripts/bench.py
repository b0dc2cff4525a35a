"""Time training steps: python scripts/bench.py [arms=gpt,ngpt] [key=value ...]

    arms=gpt,ngpt,gpt:eager,ngpt:eager   contenders, stepped in turn; ":eager" and ":compiled" override compile=
    nanogpt=PATH/model.py                adds the arm nanogpt (and nanogpt:eager in arms=): nanoGPT's model, from your checkout
    nvidia=PATH/model.py                 the same for NVIDIA/ngpt: arms nvidia_gpt and nvidia_ngpt
    rounds=20                            steps of each contender that are timed; two before them are not
    memory=true                          also the peak memory of each arm's tensors, beside the dry run's estimate
    profile=DIR                          write a trace of one step of each arm, for chrome://tracing or Perfetto
    json=PATH                            write everything measured as JSON

Every other key is train.py's: size= context= precision= micro_batch_size= compile= device= model.*= and so on. The steps are the
real Trainer's, on random tokens. Medians; ratios are of steps taken next to each other. Under torchrun it times DDP.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from cli.entry import ending_in_one_line

if __name__ == "__main__":
    with ending_in_one_line(has_ranks=True):
        if {"-h", "--help"} & set(sys.argv[1:]):
            print((__doc__ or "python -OO keeps no help; start Python without it").strip())
        else:
            from lab.benchmark.cli import main

            main(sys.argv[1:])
