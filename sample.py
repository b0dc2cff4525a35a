"""Write text with a trained model: `python sample.py run=runs/NAME prompt="Once upon a time"`."""

import codecs
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import torch

from corpus.manifest import TOKENIZER_NAME, DataError
from corpus.tokenizer import load_tokenizer
from engine.entry import ConfigError, run_entry
from engine.generate import generate
from engine.run import load_trained_model


@dataclass
class SampleConfig:
    run: str
    checkpoint: Optional[int]
    prompt: Optional[str]
    num_samples: int
    max_new_tokens: int
    temperature: float
    top_k: Optional[int]
    top_p: Optional[float]
    seed: int
    device: str


def check(config: SampleConfig) -> None:
    for name in ("num_samples", "max_new_tokens", "top_k"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)}: must be positive")
    if config.temperature < 0:
        raise ConfigError(f"temperature={config.temperature}: must not be negative")
    if config.top_p is not None and not 0 < config.top_p <= 1:
        raise ConfigError(f"top_p={config.top_p}: must be above 0 and at most 1")
    if config.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={config.device}: must be auto, cpu or cuda")


def main(config: SampleConfig) -> None:
    check(config)
    run, device = Path(config.run), config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _, model = load_trained_model(run, config.checkpoint)
    model.to(device)
    tokenizer = load_tokenizer(run / TOKENIZER_NAME)
    if tokenizer.n_vocab > model.config.vocab_size:
        raise DataError(
            f"{run / TOKENIZER_NAME}: {tokenizer.n_vocab:,} tokens, but the model has {model.config.vocab_size:,} outputs: "
            "not the tokenizer of this run"
        )
    for stream in (sys.stdin, sys.stdout):  # a prompt may be no UTF-8, a terminal may know no more than ASCII
        stream.reconfigure(errors="replace")
    prompt = config.prompt
    if prompt is None:
        prompt = "" if sys.stdin.isatty() else sys.stdin.read()
    # Documents are joined by the end-of-text token, so it is what a text begins after.
    tokens = tokenizer.encode(prompt, allowed_special="all") or [tokenizer.eot_token]
    generator = torch.Generator(device).manual_seed(config.seed)
    started = time.perf_counter()
    for sample in range(config.num_samples):
        if config.num_samples > 1:
            print(f"--- sample {sample + 1}")
        print(prompt, end="", flush=True)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be spread over several tokens
        stream = generate(model, torch.tensor([tokens], device=device), config.max_new_tokens, n_tokens=tokenizer.n_vocab,
                          temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, generator=generator)  # fmt: skip
        for token in stream:
            if token.item() == tokenizer.eot_token:
                break
            print(decoder.decode(tokenizer.decode_single_token_bytes(token.item())), end="", flush=True)
        print(decoder.decode(b"", final=True))
    seconds = time.perf_counter() - started
    print(f"{config.num_samples} x up to {config.max_new_tokens} tokens in {seconds:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    # The prompt is taken as it is: Hydra would want commas, quotes and colons in it escaped.
    prompts = [argument.removeprefix("prompt=") for argument in sys.argv[1:] if argument.startswith("prompt=")]
    sys.argv = [argument for argument in sys.argv if not argument.startswith("prompt=")]

    def with_prompt(config: SampleConfig) -> None:
        main(replace(config, prompt=prompts[-1]) if prompts else config)

    run_entry(with_prompt, SampleConfig, config_name="sample")
