"""What only a GPU can show; skipped without one. `python -m pytest -m gpu` on a machine that has one."""

import pytest
import torch
from training import SMALL, metrics, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def train(folder, docs, name, *overrides):
    run("train.py", f"model={name}", f"data.dir={docs}", f"out_dir={folder}", "run_name=run", *SMALL, *overrides)
    return metrics(folder / "run", "val/loss")[12]


@pytest.mark.parametrize("model", ["gpt", "ngpt"])
def test_a_gpu_gives_the_loss_of_the_cpu(docs, tmp_path, model):
    cpu = train(tmp_path / "cpu", docs, model, "device=cpu")
    gpu = train(tmp_path / "gpu", docs, model, "device=cuda", "compile=false")
    assert gpu == pytest.approx(cpu, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt", "ngpt"])
def test_compiled_in_bf16_a_gpu_comes_close_to_the_cpu(docs, tmp_path, model):
    cpu = train(tmp_path / "cpu", docs, model, "device=cpu")
    gpu = train(tmp_path / "gpu", docs, model, "device=cuda", "precision=bf16", "compile=true")
    assert gpu == pytest.approx(cpu, rel=2e-2)
