"""Trunks and branches of a sweep with schedule: wsd: what a branch waits for, and when it must begin from nothing."""

from collections.abc import Collection
from dataclasses import replace

from lab.sweeps.plan import Point
from runfolder import layout


def is_ready(point: Point, unsettled: Collection[str]) -> bool:
    """Return whether a point can start: it is no branch, or its trunk has passed its first step or goes no further.

    Args:
        unsettled: names of the points that are waiting or running.
    """
    return point.trunk is None or point.trunk not in unsettled or point.first_step in list_steps(point)


def detach(point: Point) -> Point:
    """Return a point as it is to start: a branch whose trunk keeps nothing to continue (it diverged at once) begins by itself."""
    if point.trunk is None or any(step <= point.first_step for step in list_steps(point)):
        return point
    return replace(point, overrides=tuple(word for word in point.overrides if not word.startswith("branch_from=")), first_step=0)


def list_steps(point: Point) -> list[int]:
    """Return the steps of the checkpoints that a branch's trunk holds."""
    assert point.trunk is not None  # else it is no branch
    folder = point.run_dir.parent / point.trunk / layout.CHECKPOINTS
    return [layout.checkpoint_step(path) for path in layout.list_checkpoints(folder)]


def own_steps(point: Point) -> int:
    """Return the steps that a point computes itself."""
    return point.max_steps - point.first_step
