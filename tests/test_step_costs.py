"""What a step costs, as far as it can be counted without a GPU: bytes kept, operators, chunks, and the tables about cards."""

import subprocess
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training import ROOT, composed

from cli.composition import ConfigError
from engine.accounting import peak_of
from engine.attention import attention_kernel, choose_attention
from engine.distributed import Ranks
from engine.loss import MAX_LOGITS, tokens_in_a_chunk
from engine.memory import estimate_memory, saved_bytes
from engine.models import build_model
from engine.parallel import place_sharded
from lab.benchmark.hardware_limits import bytes_per_step, matmul_rate

TOKENS, CHANNELS = 4 * 64, 64
SIZES = ["size=tiny", "model.n_embd=64", "model.n_head=4", "model.sequence_length=64", "model.vocab_size=64"]
BATCH = ["micro_batch_size=4", "global_batch_size=4", "device=cpu"]
# A view moves nothing; detach is autograd's own.
VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "expand",
    "unsqueeze",
    "squeeze",
    "slice",
    "unbind",
    "detach",
    "alias",
    "reshape",
    "promote_types",
}


class Operators(TorchDispatchMode):
    """Count the operators that move data."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names[name] += name not in VIEWS
        return func(*args, **(kwargs or {}))


# In eager mode, where casts and SiLU are kept as well; compiled in bf16 it is 44 and 64 (docs/performance.md).
@pytest.mark.parametrize(
    "arm, precision, most", [("gpt", "fp32", 105), ("gpt", "bf16", 75), ("ngpt", "fp32", 134), ("ngpt", "bf16", 104)]
)
def test_a_layer_keeps_no_more_bytes_than_it_did(arm, precision, most):
    config = composed(f"model={arm}", *SIZES, *BATCH, f"precision={precision}")
    one, two = (saved_bytes(config.model, config, layers) for layers in (1, 2))
    assert (two - one) / (TOKENS * CHANNELS) <= most


@pytest.mark.parametrize("arm, forward, backward", [("gpt", 34, 66), ("ngpt", 64, 136)])
def test_a_block_has_no_more_operators_than_it_had(arm, forward, backward):
    config = composed(f"model={arm}", *SIZES, *BATCH)
    model = build_model(config.model)
    h = torch.randn(4, 64, 64, requires_grad=True)
    with Operators() as there:
        out = model.blocks[0](h, model.rotary(64))
    with Operators() as back:
        out.backward(torch.ones_like(out))
    assert there.names.total() <= forward, there.names
    assert back.names.total() <= backward, back.names


@pytest.mark.parametrize("tokens", [1, 100, 5336, 5337, 8192, 16384, 16400, 65536])
@pytest.mark.parametrize("vocab_size", [272, 32000, 50304, MAX_LOGITS + 1])
def test_chunks_are_few_even_and_whole_tiles(tokens, vocab_size):
    chunk = tokens_in_a_chunk(tokens, vocab_size)
    most = max(1, MAX_LOGITS // vocab_size)
    assert 1 <= chunk <= most or chunk == tokens <= most
    if chunk < tokens and most >= 128:
        chunks = -(-tokens // chunk)
        assert chunk % 128 == 0 and chunks <= -(-tokens // (most // 128 * 128))
        assert chunks * chunk - tokens < 128 * chunks, "the last one is about as large as the others"


def test_the_papers_micro_batch_is_four_equal_chunks():
    assert tokens_in_a_chunk(16 * 1024, 50304) == 4096


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 836e12),
        ("NVIDIA GB300", 2.5e15),
        ("NVIDIA B300 SXM6 AC", 2.25e15),
        ("NVIDIA H800", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A40", 150e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX 6000 Ada Generation", 364e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A1000", None),
    ],
)
def test_the_peak_is_that_of_the_card_and_of_no_slice_or_namesake(name, peak):
    assert peak_of(name) == peak


def test_the_floor_of_fp8_is_timed_in_bf16_and_of_a_model_without_norms_has_no_renormalization():
    config = SimpleNamespace(
        precision=SimpleNamespace(matmul="float8"), micro_batch_size=1, model={"sequence_length": 8, "n_embd": 8}
    )
    assert matmul_rate(config, torch.device("cpu")) > 0
    assert bytes_per_step(100, 0) == 4000 and bytes_per_step(100, 90) == 4000 + 720


def test_attention_runs_by_the_kernel_that_is_asked_for_and_the_environment_says_which():
    cpu, config = torch.device("cpu"), composed(*SIZES, *BATCH)
    try:
        for wanted, found in (("math", "math"), ("flash", "flash"), ("auto", "flash")):
            config.attention = wanted
            choose_attention(config, cpu)
            assert attention_kernel(config, cpu) == found
        config.attention = "cudnn"
        with pytest.raises(ConfigError, match="attention=cudnn needs an NVIDIA GPU"):
            choose_attention(config, cpu)
    finally:
        config.attention = "auto"
        choose_attention(config, cpu)


def test_hsdp_holds_a_nodes_share_of_the_state(monkeypatch):
    config = composed(*SIZES, "micro_batch_size=1", "global_batch_size=16", "parallel=hsdp", "model.n_embd=1024")
    model = build_model(config.model, device="meta")

    def state(ranks_per_node):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_per_node))
        return estimate_memory(config, model, 16, use_compile=True)["weights_and_optimizer"]

    assert state(8) == pytest.approx(2 * state(16), rel=0.1)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")  # a plan without a launch: nodes of 8
    assert estimate_memory(config, model, 16, use_compile=True)["weights_and_optimizer"] == state(8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    with pytest.raises(ConfigError, match="LOCAL_WORLD_SIZE, how many ranks a node has, is not set"):  # a start does not guess
        place_sharded(composed(*SIZES, "parallel=hsdp"), Ranks(0, 0, 16, torch.device("cpu")), False)


def test_the_gpu_benchmark_says_how_it_is_used_and_refuses_in_one_line(tmp_path):
    def bench_gpu(*arguments):
        return subprocess.run(["bash", ROOT / "scripts/bench_gpu.sh", *arguments], cwd=tmp_path, capture_output=True, text=True)

    asked = bench_gpu("--help")
    assert (
        asked.returncode == 0 and asked.stdout.startswith("usage: bash scripts/bench_gpu.sh OUT") and "SECONDS_LEFT" in asked.stdout
    )
    assert bench_gpu().returncode == 2
    if not torch.cuda.is_available():
        refused = bench_gpu("out")
        assert refused.returncode == 2 and refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
