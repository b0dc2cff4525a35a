"""Branches of a run with schedule=wsd: the steps before the decay are taken from a longer run, the trunk."""

from dataclasses import asdict, replace
from pathlib import Path

from safetensors.torch import load_file

from cli.composition import ConfigError
from corpus.manifest import DataError
from engine.checkpoint import Snapshot, load_trainer_state, verify_checkpoint, write_checkpoint
from engine.config import Config, difference
from engine.config_file import load_config
from runfolder import layout
from runfolder.files import write_atomically
from runfolder.metrics import parse_record, read_text
from runfolder.status import read_nested


def branch_off(config: Config, data_digest: str) -> None:
    """Put the trunk's newest checkpoint before both decays, and its metrics up to there, into a new run's folder.

    What follows is an ordinary resume, so the branch equals the run trained from its beginning, bit for bit.
    A kill leaves no checkpoint, and so the next start begins again.

    Raises:
        ConfigError: branch_from is no run, differs in more than its length, or keeps no checkpoint that could be continued.
        DataError: it was trained on other data. CheckpointError: its checkpoint is damaged, or cannot be written here.
    """
    assert config.branch_from is not None
    trunk = Path(config.branch_from)
    theirs = load_config(trunk / layout.CONFIG)
    changes = difference(replace(theirs, max_steps=config.max_steps), config)
    if changes:
        raise ConfigError(f"branch_from={trunk}: it differs in more than max_steps ({'; '.join(changes)})")
    digest = read_nested(trunk / layout.ENVIRONMENT, "data", "digest")
    if digest != data_digest:
        raise DataError(f"branch_from={trunk}: trained on other data ({str(digest)[:12]}) than this run ({data_digest[:12]})")
    last = min(config.decay_start, theirs.decay_start)
    usable = [path for path in layout.list_checkpoints(trunk / layout.CHECKPOINTS) if layout.checkpoint_step(path) <= last]
    if not usable:
        raise ConfigError(
            f"branch_from={trunk}: no checkpoint at or before step {last}, where the decay begins; the trunk keeps one with "
            f"keep_steps=[{last}]"
        )
    verify_checkpoint(usable[0])
    state = load_trainer_state(usable[0])
    lines = [line for line in read_text(trunk).splitlines() if (record := parse_record(line)) and record["step"] <= state.step]
    write_atomically(config.run_dir / layout.METRICS, "".join(f"{line}\n" for line in lines))
    tensors = [load_file(usable[0] / f"{name}.safetensors") for name in ("model", "optimizer")]
    snapshot = Snapshot(asdict(replace(state, wandb_id=None)), *tensors)  # a curve of its own in the tracker
    write_checkpoint(config.run_dir / layout.CHECKPOINTS, snapshot, config.keep_checkpoints, config.keep_every, config.keep_steps)
