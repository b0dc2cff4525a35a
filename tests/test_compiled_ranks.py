"""Compiled on two processes, under DDP, FSDP and HSDP: the same gradients as one process in eager mode, in few graphs."""

import json

import pytest
from training import ROOT, run

PROGRAM = """
import json, os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from functools import partial
import torch
# The graphs are the same; no C++ compiler is waited for. What it makes of them other tests compare (test_compiled_equals_eager).
torch.compile = partial(torch.compile, backend="aot_eager")
from engine.distributed import full_tensor, start_ranks
from engine.loss import NextTokenLoss
from engine.models import build_model
from engine.parallel import parallelize, set_gradient_sync
from training import SMALL, composed

found = {{}}
with start_ranks("cpu", 60) as ranks:
    for parallel in ("ddp", "fsdp", "hsdp"):
        os.environ["LOCAL_WORLD_SIZE"] = "1"  # hsdp: two nodes of one rank, each with a whole copy
        config = composed("model=ngpt", *SMALL, f"parallel={{parallel}}", "model.n_layer=2")
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.manual_seed(0)
        loss_of, model = parallelize(config, ranks, use_compile=True)
        batch = torch.randint(0, 272, (2, 4, 33), generator=torch.Generator().manual_seed(1))
        for micro_step in range(2):
            set_gradient_sync(model, micro_step == 1)
            model(batch[ranks.rank]).backward()
        # Both average over the ranks.
        norms = {{name: full_tensor(p.grad).norm().item() for name, p in loss_of.model.named_parameters()}}
        counters = torch._dynamo.utils.counters
        graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        found[parallel] = {{"norms": norms, "graphs": graphs, "breaks": breaks}}
    torch.manual_seed(0)
    whole = NextTokenLoss(build_model(config.model))
    whole(batch.flatten(0, 1)).backward()
    found["eager"] = {{"norms": {{name: p.grad.norm().item() for name, p in whole.model.named_parameters()}}}}
    if ranks.is_main_process:
        print(json.dumps(found))
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_compile_one_graph_of_a_block_and_one_of_the_loss(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(root=str(ROOT), tests=str(ROOT / "tests")))
    found = json.loads(run(str(script), ranks=2).stdout.splitlines()[-1])
    for parallel in ("ddp", "fsdp", "hsdp"):
        assert found[parallel]["graphs"] == 2 and found[parallel]["breaks"] == 0, parallel
        for name, norm in found["eager"]["norms"].items():
            assert found[parallel]["norms"][name] == pytest.approx(norm, rel=1e-3), (parallel, name)  # 2 micro steps / 2 ranks
