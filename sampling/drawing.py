"""Continuations of a prompt by a trained run, drawn together and handed on as they grow."""

import codecs
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cli.composition import ConfigError
from engine.generate import Sampling, context_start, generate
from engine.trained import TrainedRun
from sampling.settings import SampleSettings


class Sample:
    """One continuation while it grows; a character that is spread over several tokens appears with the last of them.

    Args:
        number: counts from 1.
        stop: texts that end it, and are not part of it; an end of it that one of them may begin with is held back.
    """

    def __init__(self, number: int, stop: Sequence[str] = ()):
        self.number, self.stop = number, tuple(stop)
        self.text, self.n_tokens = "", 0  # the end-of-text token is not counted
        self.finish_reason: str | None = None  # end_of_text, stop, length; None while it grows
        self.held = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: bytes) -> None:
        self.n_tokens += 1
        self.held += self.decoder.decode(token)
        found = [place for place in map(self.held.find, self.stop) if place >= 0]
        if found:
            self.held = self.held[: min(found)]
            self.finish("stop")
            return
        lengths = range(1, 1 + max(map(len, self.stop), default=0))
        uncertain = max((n for n in lengths if any(stop.startswith(self.held[-n:]) for stop in self.stop)), default=0)
        settled = len(self.held) - min(uncertain, len(self.held))
        self.text, self.held = self.text + self.held[:settled], self.held[settled:]

    def finish(self, reason: str) -> None:
        self.finish_reason = reason
        self.text += self.held + ("" if reason == "stop" else self.decoder.decode(b"", final=True))
        self.held = ""


@dataclass
class Speed:
    """Tokens and seconds spent on reading prompts (up to the first token drawn) and on writing what follows."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {tokens:,} tokens in {seconds:.2f} s ({tokens / max(seconds, 1e-9):,.1f} tokens/s)"
            for name, tokens, seconds in (
                ("prefill", self.prefill_tokens, self.prefill_seconds),
                ("decode", self.decode_tokens, self.decode_seconds),
            )
        )


def encode_prompt(run: TrainedRun, prompt: str) -> list[int]:
    """Return a prompt's tokens; a text begins after the end-of-text token, which is what an empty one becomes."""
    return run.tokenizer.encode(prompt, allowed_special="all") or [run.tokenizer.eot_token]


def draw(run: TrainedRun, prompt: list[int], config: SampleSettings, speed: Speed) -> Iterator[list[Sample]]:
    """Yield the list of the prompt's num_samples samples again and again while they grow, batch_size at a time.

    The first time all are empty, the last time all are finished. What the model takes in between is counted in `speed`.
    """
    samples = [Sample(number, config.stop or ()) for number in range(1, config.num_samples + 1)]
    yield samples
    for first in range(0, len(samples), config.batch_size):
        batch = samples[first : first + config.batch_size]
        try:
            for _ in grow(run, prompt, batch, config, speed):
                yield samples
        except torch.OutOfMemoryError:
            raise ConfigError(f"out of memory with {len(batch)} samples at a time; try a batch_size below {len(batch)}") from None
        for sample in batch:
            if sample.finish_reason is None:
                sample.finish("length")
        yield samples


def grow(run: TrainedRun, prompt: list[int], batch: list[Sample], config: SampleSettings, speed: Speed) -> Iterator[None]:
    """Add one token to every sample of a batch that has not ended, and yield; until all have, or max_new_tokens times."""
    end = run.tokenizer.eot_token
    generators = [torch.Generator(run.device).manual_seed(seed_of(config.seed, sample.number)) for sample in batch]
    stream = generate(
        run.model,
        torch.tensor([prompt], device=run.device),
        config.max_new_tokens,
        n_tokens=run.tokenizer.n_vocab,
        sampling=Sampling(config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty),
        generators=generators,
        end_token=end,
    )
    is_first = True
    while True:
        started = time.perf_counter()
        following = next(stream, None)
        if following is None:
            return
        tokens = following.tolist()  # waits for the device, so that the clock is right
        seconds = time.perf_counter() - started
        growing = [(sample, token) for sample, token in zip(batch, tokens, strict=True) if not sample.finish_reason]
        if is_first:
            speed.prefill_tokens += len(prompt) - context_start(len(prompt), run.model.config.sequence_length)
            speed.prefill_seconds += seconds
        else:
            speed.decode_tokens += len(growing)
            speed.decode_seconds += seconds
        is_first = False
        for sample, token in growing:
            if token == end:
                sample.finish("end_of_text")
            else:
                sample.add(run.tokenizer.decode_single_token_bytes(token))
        yield
        if all(sample.finish_reason for sample in batch):  # stopped by a text, of which generate knows nothing
            return


def seed_of(seed: int, number: int) -> int:
    """Return the seed of a sample's own generator: it depends on no other sample, and differs from those of other seeds."""
    return int(np.random.SeedSequence((seed % 2**64, number)).generate_state(1, np.uint64)[0])
