"""What would fail on a GPU, found without one: operators over two devices, and hosts that wait for the card."""

import json
import re

import pytest
import torch.utils.backend_registration as registration
from training import run

pytestmark = pytest.mark.skipif(
    not hasattr(registration, "_setup_privateuseone_for_python_backend"), reason="this torch has no devices declared in Python"
)


@pytest.mark.parametrize(
    "words",
    [
        ["gpt"],
        ["ngpt"],
        pytest.param(["gpt_qknorm"], marks=pytest.mark.slow),
        pytest.param(["angpt"], marks=pytest.mark.slow),
        pytest.param(["ngpt_ablation", "model.residual=slerp", "model.fixed=[sz]"], marks=pytest.mark.slow),
        pytest.param(["ngpt", "update=muon"], marks=pytest.mark.slow),
        pytest.param(["gpt", "update=adamh"], marks=pytest.mark.slow),
        pytest.param(["ngpt", "recompute_layers=1"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_step_an_evaluation_a_snapshot_and_a_sample_stay_on_their_device(words):
    found = json.loads(run("tests/on_a_card.py", *words).stdout)
    assert found["parameters"] == found["drawn"] == ["card:0"]
    assert found["snapshot"] == ["cpu"], "what is written beside the training is a copy"
    # The loss and the signals in one, and the gradient's norm: all else that asked would stall the card once more a step.
    assert found["asked"] == {"tolist": 1, "item": 1}


@pytest.mark.parametrize("arm", ["gpt", "ngpt"])
def test_what_is_left_on_the_cpu_is_found(arm):
    done = run("tests/on_a_card.py", arm, "left=table", code=1)
    assert re.search(r"found (at least two|two different) devices,? card:0(, | and )cpu", done.stderr), done.stderr[-500:]
