"""Samples on standard output: as they are written, side by side, or as JSON; the speed on standard error."""

import json
import os
import shutil
import sys

from engine.generate import context_start
from engine.trained import TrainedRun
from sampling.columns import side_by_side
from sampling.drawing import Sample, Speed, draw, encode_prompt
from sampling.settings import SampleSettings


def show_samples(runs: list[TrainedRun], prompts: list[str], config: SampleSettings) -> None:
    """Draw every run's samples of every prompt and write them to standard output, the tokens/s to standard error."""
    speeds = [Speed() for _ in runs]
    for number, prompt in enumerate(prompts, 1):
        label = [f"prompt {number}"] if len(prompts) > 1 else []
        for run in runs:
            note_what_is_cut(run, prompt)
        if config.json:
            for run, speed in zip(runs, speeds, strict=True):
                write_json(run, prompt, config, speed)
        elif len(runs) == 1:
            write_text(runs[0], prompt, config, speeds[0], label)
        else:
            write_comparison(runs, prompt, config, speeds, label)
    for run, speed in zip(runs, speeds, strict=True):
        print(f"{run.title}: {speed}", file=sys.stderr)


def note_what_is_cut(run: TrainedRun, prompt: str) -> None:
    length, context = len(encode_prompt(run, prompt)), run.model.config.sequence_length
    if start := context_start(length, context):
        print(
            f"note: of the prompt's {length:,} tokens {run.folder} reads the last {length - start:,}; its context is {context:,}",
            file=sys.stderr,
        )


def heading(*parts: str) -> str:
    return f"--- {', '.join(parts)}\n" if parts else ""


def name_of(sample: Sample, config: SampleSettings) -> list[str]:
    return [f"sample {sample.number}"] if config.num_samples > 1 else []


def write_text(run: TrainedRun, prompt: str, config: SampleSettings, speed: Speed, label: list[str]) -> None:
    """Write the first unfinished sample as it grows and the others in their order, each once those before it are complete."""
    current, written = 0, None  # characters of the current sample that have been written; None: not even its prompt
    for samples in draw(run, encode_prompt(run, prompt), config, speed):
        while current < len(samples):
            sample = samples[current]
            if written is None:
                print(heading(*label, *name_of(sample, config)) + prompt, end="")
                written = 0
            print(sample.text[written:], end="", flush=True)
            written = len(sample.text)
            if sample.finish_reason is None:
                break
            print(flush=True)
            current, written = current + 1, None


def write_json(run: TrainedRun, prompt: str, config: SampleSettings, speed: Speed) -> None:
    """Write one JSON object per line and sample, in their order, each once it and those before it are complete."""
    tokens, done = encode_prompt(run, prompt), 0
    for samples in draw(run, tokens, config, speed):
        while done < len(samples) and samples[done].finish_reason:
            sample = samples[done]
            record = {
                "run": str(run.folder),
                "model": run.arm,
                "step": run.step,
                "prompt": prompt,
                "completion": sample.text,
                "prompt_tokens": len(tokens),
                "completion_tokens": sample.n_tokens,
                "finish_reason": sample.finish_reason,
                "seed": config.seed,
                "sample": sample.number,
                "temperature": config.temperature,
                "top_k": config.top_k,
                "top_p": config.top_p,
                "min_p": config.min_p,
                "repetition_penalty": config.repetition_penalty,
                "stop": config.stop,
            }
            print(json.dumps(record), flush=True)
            done += 1


def write_comparison(runs: list[TrainedRun], prompt: str, config: SampleSettings, speeds: list[Speed], label: list[str]) -> None:
    """Write every sample of the first run beside those of the others, or below each other where the terminal is narrow."""
    drawn = [[*draw(run, encode_prompt(run, prompt), config, speed)][-1] for run, speed in zip(runs, speeds, strict=True)]
    titles = [run.title for run in runs]
    for samples in zip(*drawn, strict=True):
        parts = [*label, *name_of(samples[0], config)]
        texts = [as_shown(sample.text) for sample in samples]
        columns = side_by_side(titles, texts, terminal_width())
        if columns is None:
            for title, text in zip(titles, texts, strict=True):
                print(heading(title, *parts) + as_shown(prompt) + text)
        else:
            print(heading(*parts) + (as_shown(prompt) + "\n" if prompt else "") + columns)
        print(flush=True)


def as_shown(text: str) -> str:
    """Return text with what standard output's encoding cannot show already replaced, as its width depends on it."""
    return text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding)


def terminal_width() -> int:
    """Return the terminal's columns, or COLUMNS; 0 without either, as in a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else 0
