"""Write text with a trained model.

    python sample.py runs/NAME prompt="Once upon a time"
    python sample.py runs/A runs/B prompt_file=prompts.txt     several runs, side by side

    runs=runs/A,runs/B   the run folders, if they are not given without a key
    checkpoint=null      step of the checkpoint; null: the newest
    prompt=null          null: read from standard input, or the end-of-text token alone on a terminal
    prompt_file=null     instead of prompt: one prompt a line, or .jsonl with a "prompt" in each line
    num_samples=1        of each prompt
    max_new_tokens=200
    temperature=0.8      0: the most probable token
    top_k=null           draw from the k most probable tokens
    top_p=null           draw from the fewest tokens that together have this probability
    min_p=null           draw from the tokens with at least this share of the most probable one's probability
    repetition_penalty=1.0   divides the logits of tokens that occur already (multiplies them where negative)
    stop=null            a text that ends a sample and is not written; several as JSON: stop='["\\n\\n", "END"]'
    seed=1337            sample i of a prompt depends on (seed, i) alone
    batch_size=16        samples drawn together; only a matter of memory
    json=false           one JSON object per sample instead of text
    device=auto          auto | cpu | cuda

Values are taken as they are written. docs/sampling.md explains the keys.
"""

import io
import sys
from pathlib import Path

from cli.arguments import Program
from cli.composition import ConfigError
from cli.loading import loading
from sampling.prompts import read_prompts
from sampling.settings import SampleSettings, check


def main(settings: SampleSettings) -> None:
    check(settings)
    with loading():
        import torch

        from engine.trained import open_trained_run
        from sampling.show import show_samples

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: this PyTorch finds no CUDA GPU; device=cpu would run")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
    for stream in (sys.stdin, sys.stdout):  # a prompt may be no UTF-8, a terminal may know no more than ASCII
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        # Everything is opened before the first token is drawn, so that a fault in the last run shows at once.
        prompts = read_prompts(settings.prompt, settings.prompt_file)
        show_samples([open_trained_run(Path(path), settings.checkpoint, device) for path in settings.runs], prompts, settings)
    except KeyboardInterrupt:  # what has been written so far is what was wanted
        print(file=sys.stderr if settings.json else sys.stdout)
        sys.exit(130)


PROGRAM = Program(main, SampleSettings, ("runs",), __doc__)
