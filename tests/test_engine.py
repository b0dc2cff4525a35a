"""The engine's parts one by one: data order, loss, schedule, checkpoints."""

import types

import numpy as np
import pytest
import torch
from training import SMALL, composed, error_line, metrics, run

from corpus.manifest import read_manifest
from corpus.token_file import open_token_file, token_byte_lengths
from engine.checkpoint import (
    CheckpointError,
    TrainerState,
    find_checkpoint,
    load_model,
    load_optimizer,
    take_snapshot,
    write_checkpoint,
)
from engine.data import BatchShape, TrainingWindows, epoch_order, micro_batches
from engine.evaluate import ValidationSet
from engine.interruption import Interruption
from engine.loss import chunked_cross_entropy, summed_cross_entropy
from engine.models import build_model
from engine.optimization import learning_rate_at
from engine.updates import Optimizer
from runfolder.layout import list_checkpoints


class Counting:
    """A token file whose token i is i, so that a window shows where it comes from."""

    def __init__(self, n_tokens):
        self.n_tokens = n_tokens

    def __len__(self):
        return self.n_tokens

    def read_window(self, start, length):
        assert start + length <= self.n_tokens
        return np.arange(start, start + length, dtype=np.uint16)


def test_an_epoch_visits_every_window_once_in_an_order_of_its_own():
    windows = TrainingWindows(Counting(10 * 20 + 5), 10, seed=3)
    assert windows.n_windows == 20
    epochs = [[windows.window_of(e * 20 + i) for i in range(20)] for e in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(20))
    assert epochs[0] != epochs[1] != epochs[2]
    assert [windows.window_of(i) for i in range(20)] == epochs[0], "going back gives the same"
    batch = windows.read(18, 4)  # over the epoch's edge
    assert batch[:, 0].tolist() == [10 * w for w in epochs[0][18:] + epochs[1][:2]]
    assert (batch.diff(dim=1) == 1).all() and batch.shape == (4, 11)


def test_the_order_is_the_same_on_every_machine_and_numpy():
    assert epoch_order(12, seed=1337, epoch=0).tolist() == [2, 4, 5, 6, 9, 7, 10, 11, 3, 8, 0, 1]
    assert not np.array_equal(epoch_order(500, 1, 0), epoch_order(500, 0, 1))


def test_the_windows_of_a_step_do_not_depend_on_ranks_micro_batch_or_start():
    windows = TrainingWindows(Counting(4 * 100 + 1), 4, seed=0)

    def steps(world_size, micro_batch_size, first_step=0):
        rows = {}
        for rank in range(world_size):
            stream = micro_batches(windows, BatchShape(24, micro_batch_size, rank, world_size), first_step, 9)
            seen = torch.cat(list(stream))[:, 0].view(9 - first_step, -1)
            for step, row in enumerate(seen, first_step):
                rows.setdefault(step, []).extend(row.tolist())
        return {step: sorted(row) for step, row in rows.items()}

    one = steps(1, 24)
    assert len(one) == 9 and all(len(set(row)) == 24 for step, row in one.items() if step not in (4, 8))
    for world_size, micro in ((1, 3), (2, 12), (2, 4), (4, 2), (8, 3)):
        assert steps(world_size, micro) == one
    assert steps(2, 4, first_step=5) == {s: row for s, row in one.items() if s >= 5}


def test_validation_is_one_fixed_set_however_it_is_split(docs):
    manifest = read_manifest(docs)
    file, lengths = open_token_file(docs, "val", manifest), token_byte_lengths(docs, manifest)
    full = ValidationSet(file, lengths, 64, None)
    assert full.n_tokens == (len(file) - 1) // 64 * 64
    targets = file.tokens[1 : full.n_tokens + 1]
    assert full.n_bytes == int((targets != manifest.tokenizer.eot_id).sum())
    some = ValidationSet(file, lengths, 64, 10)
    assert len(some.windows) == 10 and some.windows[-1] > 0.8 * len(full.windows)

    def rows(world_size, batch_size):
        batches = [b for rank in range(world_size) for b in some.batches(batch_size, rank, world_size)]
        assert {tuple(b.shape) for b in batches} == {(batch_size, 65)}
        return sorted(tuple(row) for b in batches for row in b.tolist() if row[0] >= 0)

    assert rows(1, 10) == rows(1, 4) == rows(2, 3) == rows(3, 4) and len(rows(3, 4)) == 10


def test_the_chunked_loss_and_its_gradients_are_the_plain_ones():
    torch.manual_seed(0)
    hidden, matrix = torch.randn(37, 8, dtype=torch.float64), torch.randn(50, 8, dtype=torch.float64)
    targets = torch.randint(50, (37,))
    targets[5] = targets[36] = -100
    results = []
    for function in (summed_cross_entropy, lambda h, m, t: chunked_cross_entropy(h, m, t, max_logits=50 * 10)):
        h, m = hidden.clone().requires_grad_(), matrix.clone().requires_grad_()
        loss = function(h, m, targets)
        loss.backward()
        results.append((loss.detach(), h.grad, m.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    by_hand = sum(-(hidden[i] @ matrix.T).log_softmax(0)[targets[i]] for i in range(37) if i not in (5, 36))
    torch.testing.assert_close(results[0][0], by_hand)


def test_the_schedule_warms_up_and_anneals():
    config = composed("max_steps=100", "learning_rate=1.0", "min_learning_rate=0.1", "warmup_steps=10")
    rates = [learning_rate_at(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11) and rates[9] == pytest.approx(10 / 11) and rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert learning_rate_at(0, composed("model=ngpt", "learning_rate=0.3")) == 0.3  # the second arm: no warmup


@pytest.fixture
def trained():
    """A small model after a few steps, with its optimizer."""
    torch.manual_seed(0)
    model = build_model({"name": "ngpt", "n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 20, "sequence_length": 8})
    optimizer = Optimizer(torch.optim.AdamW(model.parameters(), lr=0.01))
    for _ in range(3):
        model(torch.randint(20, (2, 8))).square().sum().mul(torch.randn(())).backward()
        (model.unembedding() ** 2 * torch.randn(16)).sum().backward()
        optimizer.step()
    return model, optimizer


def saved(folder, trained, steps=(10, 20, 30), keep=5, keep_every=None):
    for step in steps:
        write_checkpoint(folder, take_snapshot(*trained, TrainerState(step, 1.5, None)), keep, keep_every)
    return folder


def test_a_checkpoint_brings_everything_back_and_old_ones_go(tmp_path, trained):
    folder = saved(tmp_path, trained, keep=2)
    assert [p.name for p in list_checkpoints(folder)] == ["step-00000030", "step-00000020"]
    path = find_checkpoint(folder)
    other = build_model(vars(trained[0].config) | {"name": "ngpt"})
    other_optimizer = Optimizer(torch.optim.AdamW(other.parameters(), lr=0.01))
    load_model(path, other)
    load_optimizer(path, other, other_optimizer)
    for (name, a), b in zip(trained[0].named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        for key, value in trained[1].state[a].items():
            assert torch.equal(value, other_optimizer.state[b][key]), (name, key)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "trainer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_damage_anywhere_is_found_and_the_checkpoint_before_is_used(file, damage, tmp_path, trained, capsys):
    folder = saved(tmp_path, trained)
    victim = folder / "step-00000030" / file
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    victim.write_bytes({"truncate": content[:-1], "empty": b""}.get(damage, bytes(content)))
    if damage == "delete":
        victim.unlink()
    assert find_checkpoint(folder).name == "step-00000020"
    assert "set aside, continuing from step-00000020" in capsys.readouterr().out
    assert (folder / "step-00000030.corrupt-1").is_dir()


@pytest.mark.slow
def test_if_all_are_damaged_training_does_not_silently_begin_again(docs, tmp_path):
    base = [*SMALL, f"data.dir={docs}", f"out_dir={tmp_path}", "run_name=x"]
    run("train.py", *base)
    for file in (tmp_path / "x/checkpoints").glob("*/model.safetensors"):
        file.write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/pwned'\ntR.")  # a pickle that would run a command
    before = metrics(tmp_path / "x", "val/loss")
    for _ in range(2):
        assert "no intact checkpoint" in error_line(run("train.py", *base, code=4))
    assert metrics(tmp_path / "x", "val/loss") == before


def test_what_a_kill_leaves_behind_is_not_a_checkpoint(tmp_path, trained):
    folder = saved(tmp_path, trained, steps=(10,))
    (folder / ".writing-step-00000020").mkdir()
    (folder / ".writing-step-00000020/model.safetensors").write_bytes(b"half")
    assert find_checkpoint(folder).name == "step-00000010"
    saved(folder, trained, steps=(20,))
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000010", "step-00000020"]


def test_a_failed_save_harms_nothing(tmp_path, trained, monkeypatch):
    folder = saved(tmp_path, trained, steps=(10,))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.checkpoint.sync_path", full)
    with pytest.raises(CheckpointError, match="No space left"):
        saved(folder, trained, steps=(20,))
    assert [p.name for p in folder.iterdir()] == ["step-00000010"]


def test_a_checkpoint_of_another_shape_is_refused(tmp_path, trained):
    path = find_checkpoint(saved(tmp_path, trained))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(path, build_model({"name": "gpt", "n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 20}))


def test_interruption_notes_the_first_signal_and_gives_the_handlers_back():
    import os
    import signal
    import time

    before = signal.getsignal(signal.SIGUSR2)
    with Interruption() as interruption:
        interruption.has_begun = True
        assert interruption.received is None
        os.kill(os.getpid(), signal.SIGUSR2)
        deadline = time.monotonic() + 5  # a thread listens
        while interruption.received is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert interruption.received == "SIGUSR2"
    assert signal.getsignal(signal.SIGUSR2) == before


def test_mfu_knows_the_devices_it_should(monkeypatch):
    from engine.accounting import peak_flops

    cuda = types.SimpleNamespace(type="cuda")
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12),
        ("Something New", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device, name=name: name)
        assert peak_flops(cuda, "bfloat16") == peak
    assert peak_flops(cuda, "float32") is None and peak_flops(torch.device("cpu"), "bfloat16") is None
