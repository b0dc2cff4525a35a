"""A step on a GPU that is not there: what the compiler makes of it, and the roofline above."""

import importlib.util
import json
import sys

import pytest
import torch
from training import SMALL, refusal, run

from cli.composition import ConfigError
from lab.prediction.cards import CARDS, OF_BANDWIDTH, OF_PEAK, OF_PEAK_IN_ATTENTION
from lab.prediction.imagined_card import refuse_gpu_build
from lab.prediction.kernels import Kernel

HAS_TRITON = importlib.util.find_spec("triton") is not None
predicts = pytest.mark.skipif(
    not HAS_TRITON or torch.version.cuda is not None or torch.version.hip is not None,
    reason="it takes PyTorch's CPU build and requirements-predict.txt",
)
HALF_B = ["size=0.5b", "context=1k", "micro_batch_size=16", "global_batch_size=64"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["card=h10"], "card=h10: no such card: did you mean 'h100'?; there are a100, h100, h200"),
        (["arms=gtp"], "arms=gtp: no such arm: did you mean 'gpt'?; there are"),
        (["precision=fp32"], "precision=fp32: predicted for bf16 alone"),
        (["update=muon"], "predicted for update=adamw without recompute_layers alone"),
        (["attention=math"], "attention=math: predicted for cudnn"),
        (["learning_rte=1"], "did you mean 'learning_rate'"),
        pytest.param([], "pip install -r requirements-predict.txt", marks=pytest.mark.skipif(HAS_TRITON, reason="Triton is here")),
    ],
)
def test_the_prediction_refuses_in_one_line(arguments, message):
    assert message in refusal("scripts/predict_gpu.py", *arguments, code=2)


def test_a_torch_built_for_gpus_is_refused_before_it_is_touched(tmp_path):
    (tmp_path / "version.py").write_text("__version__ = '2.13.0'; cuda = '13.0'; hip = None")
    with pytest.raises(ConfigError, match="torch 2.13.0 is built for GPUs"):
        refuse_gpu_build(tmp_path)
    (tmp_path / "version.py").write_text("__version__ = '2.13.0+cpu'; cuda = None; hip = None")
    refuse_gpu_build(tmp_path)


def test_a_kernel_takes_as_long_as_its_bytes_or_its_products():
    card, peak = CARDS["h100"], 989e12
    elementwise = Kernel("elementwise", False, 3_350_000, 0)
    assert elementwise.seconds(card, peak) == pytest.approx(1e-6 / OF_BANDWIDTH)
    product = Kernel("extern_kernels.mm", True, 3_350_000, 989_000_000_000)
    assert product.seconds(card, peak) == pytest.approx(1e-3 / OF_PEAK)
    for backward in (False, True):
        attention = Kernel("aten._scaled_dot_product_cudnn_attention", backward, 0, 989_000_000_000)
        assert attention.seconds(card, peak) == pytest.approx(1e-3 / OF_PEAK_IN_ATTENTION[backward])


@pytest.mark.slow
@predicts
def test_a_block_on_an_h100_is_what_the_documents_say(tmp_path):
    out = tmp_path / "predicted.json"
    run("scripts/predict_gpu.py", *HALF_B, f"json={out}", executable=sys.executable)  # a start of its own: torch must not be there
    found = json.loads(out.read_text())
    assert found["predicted_for"] == "NVIDIA H100 80GB HBM3"
    ratio = found["arms"]["ngpt"]["step_seconds"] / found["arms"]["gpt"]["step_seconds"]
    assert 1.0 < ratio < 1.04
    C, tokens = 1024, 16 * 1024
    for arm, most_kernels, most_mb in (("gpt", 27, 3000), ("ngpt", 29, 3550)):
        block = found["arms"][arm]["block"]
        elementwise = [kernel for kernel in block if kernel["name"] == "elementwise"]
        assert len(elementwise) <= most_kernels and sum(kernel["bytes"] for kernel in elementwise) <= most_mb * 1e6
        products = [kernel for kernel in block if kernel["name"].endswith(".mm")]
        assert sum(kernel["flops"] for kernel in products) == 6 * 16 * C * C * tokens, "every product, forward and backward"
        attention = [kernel["flops"] for kernel in block if "attention" in kernel["name"]]
        assert attention == [2 * 1024 * C * tokens, 5 * 1024 * C * tokens]
    renormalization = found["arms"]["ngpt"]["renormalization_of_a_block"]
    assert len(renormalization) == 11 and sum(kernel["bytes"] for kernel in renormalization) / (16 * C * C) < 9.5
    assert 1.4e-3 < found["arms"]["ngpt"]["seconds"]["renormalization"] < 1.6e-3
    assert found["arms"]["gpt"]["renormalization_of_a_block"] == [] and not found["arms"]["gpt"]["seconds"]["renormalization"]


@pytest.mark.slow
@predicts
def test_a_batch_that_does_not_divide_is_refused():
    words = ["size=tiny", "micro_batch_size=3", "global_batch_size=4"]
    done = run("scripts/predict_gpu.py", *words, executable=sys.executable, code=2)
    assert "global_batch_size" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
@predicts
def test_every_arm_can_be_predicted():
    small = [word for word in SMALL if word.startswith("model.")]
    words = ["size=tiny", *small, "micro_batch_size=2", "global_batch_size=4", "attention=flash", "card=a100"]
    done = run("scripts/predict_gpu.py", *words, "arms=gpt,gpt_qknorm,ngpt,angpt", executable=sys.executable)
    assert all(f"\n{name:>10s}  " in done.stdout for name in ("gpt", "gpt_qknorm", "ngpt", "angpt")), done.stdout
