"""Interleaved timing: one step of each contender in turn, so that what disturbs the machine disturbs all of them."""

import statistics
import time
from collections.abc import Callable

import torch

from lab.benchmark.arms import Arm, synchronize, timed_phases


def time_rounds(arms: list[Arm], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return {arm: seconds of each round's step}; every other round goes through the arms backwards."""
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else arms[::-1]:
            synchronize(device)
            started = time.perf_counter()
            arm.step()
            synchronize(device)
            seconds[arm.name].append(time.perf_counter() - started)
    return seconds


def time_phases(arms: list[Arm], rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Return {arm: {phase: median seconds}} of steps in which the device is waited for at the end of every phase."""
    found: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms if arm.trainer}
    for _ in range(rounds):
        for arm in arms:
            if arm.trainer:
                with timed_phases(arm.trainer, device) as seconds:
                    arm.step()
                found[arm.name].append(seconds)
    return {name: {phase: statistics.median(r[phase] for r in records) for phase in records[0]} for name, records in found.items()}


def ratio(seconds: dict[str, list[float]], arm: str, base: str) -> dict[str, float]:
    """Return the median of the rounds' ratios arm/base and their quartiles."""
    ratios = [a / b for a, b in zip(seconds[arm], seconds[base], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": middle, "low": low, "high": high}


def peak_memory_gib(arm: Arm, device: torch.device) -> float:
    """Return the most memory that tensors take during a step of this arm: what it holds between steps, and the step's own.

    Not the process's resident memory, in which compilers and libraries lie as well.
    """
    arm.step()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        arm.step()
        return (arm.held_bytes() + torch.cuda.max_memory_allocated(device) - start) / 2**30
    return (arm.held_bytes() + allocated_peak(arm.step)) / 2**30


def allocated_peak(step: Callable[[], object]) -> int:
    """Return the most bytes of CPU tensors that a step allocates beyond what is there before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    now = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()  # negative where memory is given back
            highest = max(highest, now)
    return highest
