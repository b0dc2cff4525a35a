"""What makes a step fast or small changes no number; and what the dry run and the benchmark say is so."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import ROOT, composed, environment, refusal

from engine.distributed import Ranks
from engine.loss import MAX_LOGITS, NextTokenLoss, chunked_cross_entropy, summed_cross_entropy
from engine.memory import estimate_memory, recompute
from engine.models import build_model
from engine.optimization import build_optimizer
from engine.parallel import compile_now, compile_parts, compile_renormalization, parallelize
from engine.precision import autocast, use_float8
from lab.benchmark.arms import held_bytes
from lab.benchmark.measure import allocated_peak
from ngpt.normalization import normalize, normalize_matrices_, scaled_linear

CPU = torch.device("cpu")
ARMS = ["gpt", "ngpt"]
SHAPE = [
    "size=tiny",
    "model.n_layer=2",
    "model.n_embd=64",
    "model.n_head=2",
    "model.sequence_length=64",
    "model.vocab_size=512",
    "micro_batch_size=4",
    "device=cpu",
]
# The sizes of SMALL and COMPILED_SHAPE (tests/training.py), at which other tests compile as well: one compilation serves all.
COMPILED = ["model.n_embd=32", "model.sequence_length=32", "model.vocab_size=272", "micro_batch_size=2"]


def make(arm, *overrides):
    config = composed(f"model={arm}", *SHAPE, "global_batch_size=8", *overrides)
    torch.manual_seed(0)
    return config, NextTokenLoss(build_model(config.model))


def windows(config, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (config.micro_batch_size, config.model["sequence_length"] + 1)
    return torch.randint(0, config.model["vocab_size"], shape, generator=generator)


def gradients(loss_of, batch, matmul="float32"):
    loss_of.zero_grad()
    with autocast(CPU, matmul):
        loss = loss_of(batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in loss_of.named_parameters()}


@pytest.mark.parametrize("x_rows, is_folded", [(3, False), (40, True)])
def test_a_scale_in_the_weight_is_a_scale_of_the_product(x_rows, is_folded, monkeypatch):
    torch.manual_seed(0)
    linear, scale = nn.Linear(16, 24, bias=False).double(), torch.rand(24).double().requires_grad_()
    x = torch.randn(1, x_rows, 16).double().requires_grad_()
    inputs = (x, scale, linear.weight)
    plain = torch.autograd.grad((scale * linear(x)).sin().sum(), inputs)
    used = []
    monkeypatch.setattr(F, "linear", lambda x, w, bias=None: used.append(w is not linear.weight) or x @ w.T)
    ours = torch.autograd.grad(scaled_linear(linear, x, scale).sin().sum(), inputs)
    assert used == [is_folded]
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("use_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1])
def test_matrices_are_normalized_in_place_as_vectors_are(dtype, dim, use_compile):
    weight = torch.randn(48, 32).to(dtype)
    weight[3] = weight[:, 5] = 0
    expected, address = normalize(weight, dim).to(dtype), weight.data_ptr()
    normalize_ = torch.compile(normalize_matrices_, dynamic=False) if use_compile else normalize_matrices_
    normalize_([(weight, dim)])
    rounding = 2**-7 if dtype == torch.bfloat16 else 5e-7
    torch.testing.assert_close(weight, expected, rtol=rounding, atol=0)
    assert weight.data_ptr() == address


@pytest.mark.parametrize(
    "dtype, tolerance, use_compile",
    [(torch.float32, 1e-6, False), pytest.param(torch.float32, 1e-6, True, marks=pytest.mark.slow), (torch.bfloat16, 1e-2, False)],
)
def test_the_loss_in_chunks_has_the_loss_and_gradients_of_the_whole(dtype, tolerance, use_compile):
    torch.manual_seed(0)
    hidden, matrix = torch.randn(25, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (25,))
    targets[10:20] = -100  # a chunk of padding; the last chunk is half a one
    chunked = torch.compile(chunked_cross_entropy, fullgraph=True, dynamic=False) if use_compile else chunked_cross_entropy

    def measure(function):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = function(hidden * 1.0, matrix * 1.0, targets)
        assert loss.dtype == torch.float32
        return (loss.detach(), *torch.autograd.grad(loss * 0.3, (hidden, matrix)))

    whole = measure(summed_cross_entropy)
    for a, b in zip(whole, measure(lambda *inputs: chunked(*inputs, 10 * 50)), strict=True):
        assert (a - b).norm() <= tolerance * a.norm()
    with torch.no_grad():
        torch.testing.assert_close(chunked(hidden, matrix, targets, 10 * 50), summed_cross_entropy(hidden, matrix, targets))


@pytest.mark.slow
@pytest.mark.parametrize("arm, graphs", [("gpt", 4), ("ngpt", 6)])
def test_one_graph_of_a_block_and_one_of_the_loss_for_training_and_for_validation(arm, graphs, monkeypatch):
    """No graph break, and nothing compiled again: not for the second block, new weights, or another batch.

    nGPT has two graphs more, of a block's renormalization and of the outer matrices'.
    """
    config, loss_of = make(arm)
    optimizer = build_optimizer(loss_of.model, config)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # the same graphs, without a C++ compiler
    compile_parts(loss_of)
    compile_renormalization(loss_of.model)
    assert [len(matrices) for matrices in loss_of.model.normalized_matrices()] == ([2, 7, 7] if arm == "ngpt" else [])
    before = [p.detach().clone() for p in loss_of.parameters()]
    compile_now(loss_of, loss_of, autocast(CPU, "bfloat16"), config)
    assert all(torch.equal(p, was) for p, was in zip(loss_of.parameters(), before, strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    for step in range(3):
        for micro_step in range(2):
            gradients(loss_of, windows(config, seed=10 * step + micro_step), "bfloat16")
        optimizer.step()
        loss_of.model.post_optimizer_step()
        with torch.no_grad(), autocast(CPU, "bfloat16"):
            loss_of(windows(config, seed=99))
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == graphs


def test_the_renormalization_is_compiled_for_a_card_and_for_an_arm_that_has_one():
    def compiles(arm, device, use_compile=True):
        config, _ = make(arm)
        loss_of, _ = parallelize(config, Ranks(0, 0, 1, torch.device(device)), use_compile)
        return hasattr(getattr(loss_of.model, "normalize_", None), "_torchdynamo_orig_callable")

    assert compiles("ngpt", "meta")  # it stands for a card: any device but the CPU
    assert not compiles("ngpt", "cpu") and not compiles("gpt", "meta") and not compiles("ngpt", "meta", use_compile=False)


def test_ranks_that_renormalize_their_own_copies_add_in_one_order(monkeypatch):
    """A kernel that a timing on each rank had chosen would let DDP's copies part by rounding."""
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda function, **settings: asked.update(settings) or function)
    compile_renormalization(make("ngpt")[1].model)
    assert asked["options"]["deterministic"] and asked["dynamic"] is False


def test_after_a_step_every_matrix_goes_through_the_function_that_is_compiled():
    _, loss_of = make("ngpt")
    seen = []
    loss_of.model.normalize_ = seen.extend
    loss_of.model.post_optimizer_step()
    assert {id(weight) for weight, _ in seen} == {id(p) for p in loss_of.model.parameters() if p.dim() == 2}


@pytest.mark.slow
@pytest.mark.parametrize("arm, use_compile", [("gpt", False), ("ngpt", False), ("ngpt", True)])
def test_activations_computed_twice_change_no_gradient_and_take_less_memory(arm, use_compile):
    config, loss_of = make(arm, *(COMPILED if use_compile else []))
    names = list(dict(loss_of.named_parameters()))
    loss, expected = gradients(loss_of, windows(config))

    def kept():
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.__setitem__(t.untyped_storage()._cdata, t.untyped_storage().nbytes()) or t, lambda t: t
        ):
            loss_of(windows(config))
        return sum(sizes.values())

    before = kept()
    if use_compile:
        torch._dynamo.reset()
        compile_parts(loss_of)
    recompute(loss_of.model.blocks, 2)
    assert list(dict(loss_of.named_parameters())) == names
    again, found = gradients(loss_of, windows(config))
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, loss)
    assert kept() < 0.6 * before


def measured_peak(config, use_compile):
    """Return the bytes of all tensors at the worst moment of a step."""
    torch.manual_seed(0)
    loss_of = NextTokenLoss(build_model(config.model))
    optimizer = build_optimizer(loss_of.model, config)
    if use_compile:
        torch._dynamo.reset()
        compile_parts(loss_of)
    recompute(loss_of.model.blocks, config.recompute_layers)
    batch = windows(config)

    def step():
        for _ in range(config.global_batch_size // config.micro_batch_size):
            with autocast(CPU, config.precision.matmul):
                loss = loss_of(batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(loss_of.parameters(), 1.0)
        optimizer.step()
        loss_of.model.post_optimizer_step()
        optimizer.zero_grad(set_to_none=True)

    step()
    step()
    return held_bytes(loss_of.model, optimizer) + allocated_peak(step)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize(
    "use_compile, overrides",
    [
        (False, ["precision=fp32"]),
        (True, ["precision=bf16"]),
        (False, ["precision=bf16", "model.vocab_size=4096"]),
        (False, ["precision=fp32", "model.n_layer=4", "recompute_layers=4"]),
        (False, ["precision=fp32", "model.n_layer=6", "recompute_layers=3"]),
        (False, ["precision=fp32", "global_batch_size=4"]),  # no accumulation
    ],
)
def test_the_estimated_memory_is_within_15_percent_of_the_measured(arm, use_compile, overrides):
    config, loss_of = make(arm, "model.n_embd=128", "model.sequence_length=128", "micro_batch_size=4", *overrides)
    estimate = estimate_memory(config, loss_of.model, 1, use_compile)["total"] * 2**30
    assert estimate == pytest.approx(measured_peak(config, use_compile), rel=0.15)


def test_the_estimate_of_a_sharded_model_holds_a_share_of_the_state():
    def estimate(*overrides):
        config, loss_of = make("ngpt", *overrides)
        return estimate_memory(config, loss_of.model, 4, use_compile=True)

    whole, part = estimate("global_batch_size=16"), estimate("global_batch_size=16", "parallel=fsdp")
    assert part["weights_and_optimizer"] == pytest.approx(whole["weights_and_optimizer"] / 4, abs=1e-3)


@pytest.mark.parametrize("arm", ARMS)
def test_fp8_products_keep_names_and_come_close(arm):
    pytest.importorskip("torchao", reason="requirements-fp8.txt is not installed")
    config, loss_of = make(arm)
    loss, expected = gradients(loss_of, windows(config), "bfloat16")
    names = list(dict(loss_of.named_parameters()))
    use_float8(loss_of.model.blocks, CPU, emulate=True)
    assert list(dict(loss_of.named_parameters())) == names
    assert sum(type(m).__name__ == "Float8Linear" for m in loss_of.modules()) == 7 * config.model["n_layer"]
    again, found = gradients(loss_of, windows(config), "float8")
    assert again != loss
    torch.testing.assert_close(again, loss, rtol=1e-3, atol=0)
    for name in names:
        cosine = F.cosine_similarity(found[name].flatten(), expected[name].flatten(), dim=0)
        assert cosine > 0.9, name


def test_fp8_is_refused_where_it_cannot_run(docs, tmp_path):
    line = refusal(
        "train.py",
        "precision=fp8",
        *SHAPE,
        "data=docs",
        f"data.dir={docs}",
        "model.vocab_size=272",
        f"out_dir={tmp_path}",
        "global_batch_size=8",
        "max_steps=2",
        "warmup_steps=0",
        code=2,
    )
    assert "precision=fp8 needs an NVIDIA GPU" in line


def bench(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/bench.py"), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_the_benchmark_times_both_arms_side_by_side(tmp_path):
    out = tmp_path / "bench.json"
    done = bench(
        *SHAPE,
        *COMPILED,
        "global_batch_size=8",
        "arms=gpt,ngpt,gpt:compiled",
        "rounds=4",
        "memory=true",
        f"json={out}",
        "precision=fp32",
    )
    result = json.loads(out.read_text())
    assert list(result["arms"]) == ["gpt", "ngpt", "gpt:compiled"]
    for name, arm in result["arms"].items():
        assert f"| {name} |" in done.stdout
        assert len(arm["all_step_seconds"]) == 4 and arm["tokens_per_second"] == pytest.approx(8 * 32 / arm["step_seconds"])
        assert set(arm["phases"]) == {"data", "forward", "backward", "clipping", "optimizer", "renormalization"}
        assert 0 < arm["phases"]["forward"] < sum(arm["phases"].values())
        assert arm["memory_estimate_gib"] == pytest.approx(arm["peak_memory_gib"], rel=0.15, abs=0.002)
    assert result["arms"]["gpt"]["ratio_to_first"]["median"] == 1
    assert result["arms"]["gpt:compiled"]["build_and_compile_seconds"] > 0
    assert result["measured_rates"]["matmul_flops"] > 1e8


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["arms=gtp"], "arms=gtp: no such arm: did you mean 'gpt'?; there are"),
        (["rounds=0"], "rounds=0: must be a positive number"),
        (["arms=nanogpt", *SHAPE], "nanogpt=PATH/model.py must say where"),
        (["learning_rte=1"], "did you mean 'learning_rate'"),
    ],
)
def test_the_benchmark_refuses_in_one_line(arguments, message):
    assert message in refusal("scripts/bench.py", *arguments, code=2)


def test_chunks_are_used_at_the_papers_sizes():
    config = composed("size=0.5b", "context=1k")
    assert config.micro_batch_size * config.model["sequence_length"] * config.model["vocab_size"] > MAX_LOGITS


def test_reading_a_hundred_thousand_windows_leaves_no_memory_behind(tmp_path):
    """What is read does not stay in the process, as the pages of a memory map would (nanoGPT's issue 428)."""
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from pathlib import Path
from corpus.token_file import TokenFile
from engine.data import TrainingWindows

path = Path({str(tmp_path / "tokens.bin")!r})
np.zeros(60_000_000, dtype="<u2").tofile(path)  # 120 MB
windows = TrainingWindows(TokenFile(path, np.dtype("<u2"), 60_000_000), 1024, seed=1)
resident = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) / 1024
windows.read(0, 16)
before = resident()
for sample in range(0, 100_000, 16):
    windows.read(sample, 16)
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 20  # MiB
