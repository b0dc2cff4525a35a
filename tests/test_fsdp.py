"""parallel=fsdp: the model in parts on several processes, and the same numbers, files and promises as with all of it on each."""

import json
import os
import re
import shutil
import signal

import pytest
import torch
from jobs import STEPS, TORCHRUN, Job, arguments, assert_equal_runs, processes_of, ranks_of, wait_until
from training import COMPILED_SHAPE, ROOT, SMALL, assert_same, composed, metrics, refusal, run, tensors

from corpus.manifest import read_manifest
from corpus.token_file import open_token_file, token_byte_lengths
from engine.evaluate import ValidationSet
from engine.models import build_model
from engine.session import train

distributed = pytest.mark.distributed
SHAPE = COMPILED_SHAPE  # six, three or two micro batches for one, two or three ranks; three cut every tensor unevenly


def words(docs, folder, name, *overrides):
    return [*SMALL, *SHAPE, f"data.dir={docs}", f"out_dir={folder}", f"run_name={name}", *overrides]


def here(docs, folder, name, *overrides):
    train(composed(*words(docs, folder, name, *overrides)))
    return folder / name


def sharded(docs, folder, name, *overrides, ranks=2, **options):
    run("train.py", *words(docs, folder, name, "parallel=fsdp", *overrides), ranks=ranks, **options)
    return folder / name


def assert_agree(a, b, tolerance=1e-6):
    for key in ("train/loss", "train/grad_norm", "val/loss"):
        x, y = metrics(a, key), metrics(b, key)
        assert x.keys() == y.keys() and len(x) >= 3
        assert max(abs(x[step] / y[step] - 1) for step in x) < tolerance, key


# Several runs after one another by the same processes: most of a short run is the start of Python.
SEVERAL = """
import json, os, shutil, sys
sys.path[:0] = [{root!r}, {tests!r}]
from engine.session import train
from training import composed
if os.environ["WORLD_SIZE"] == "4":
    os.environ["LOCAL_WORLD_SIZE"] = "2"  # hsdp: two nodes
for words in json.loads(sys.argv[1]):
    if words[0] != "copy":
        train(composed(*words))
    elif os.environ["RANK"] == "0":  # the others wait for it in the next run
        shutil.copytree(*words[1:], ignore=shutil.ignore_patterns("step-00000012"))
"""
ADAMH, MUON = (["model=gpt", f"update={rule}"] for rule in ("adamh", "muon"))
VARIANT = ["model=ngpt_ablation", "model.scalar=[sqk]", "model.fixed=[sz]"]


@pytest.fixture(scope="module")
def runs(docs, tmp_path_factory):
    """Return a folder of runs: NAME-1 in this one process, NAME-2 and NAME-3 sharded over two and three."""
    folder = tmp_path_factory.mktemp("runs")
    models = {"gpt": ["model=gpt"], "ngpt": ["model=ngpt"], "variant": VARIANT, "adamh": ADAMH}
    for name, model in models.items():
        here(docs, folder, f"{name}-1", *model)
    here(docs, folder, "muon-1", *MUON)
    for name in ("ngpt-1", "adamh-1"):
        shutil.copytree(folder / name, folder / "continued" / name, ignore=shutil.ignore_patterns("step-00000012"))
    several = {
        2: [
            *(words(docs, folder, f"{name}-2", *model, "parallel=fsdp") for name, model in models.items()),
            words(docs, folder / "continued", "ngpt-1", "model=ngpt", "parallel=fsdp", "recompute_layers=1"),
            words(docs, folder / "continued", "adamh-1", *ADAMH, "parallel=fsdp"),
            words(docs, folder, "muon-2", *MUON),
            ["copy", str(folder / "muon-2"), str(folder / "continued/muon-2")],
            words(docs, folder / "continued", "muon-2", *MUON),
            arguments(docs, folder / "whole", "model=ngpt", "parallel=fsdp"),
        ],
        3: [words(docs, folder, f"{name}-3", *models[name], "parallel=fsdp") for name in ("gpt", "ngpt")],
        4: [words(docs, folder, "adamh-4", *ADAMH, "parallel=hsdp", "micro_batch_size=3")],
    }
    script = folder / "several.py"
    script.write_text(SEVERAL.format(root=str(ROOT), tests=str(ROOT / "tests")))
    for ranks, overrides in several.items():
        run(str(script), json.dumps(overrides), ranks=ranks)
    return folder


@distributed
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("arm", ["gpt", "ngpt"])
def test_sharded_training_gives_the_numbers_of_one_process(arm, ranks, runs):
    """With accumulation, clipping, renormalization along the sharded and the whole dimension, and uneven shards."""
    one, many = runs / f"{arm}-1", runs / f"{arm}-{ranks}"
    assert_agree(one, many)
    assert json.loads((many / "environment.json").read_text())["world_size"] == ranks
    a, b = tensors(one, 12), tensors(many, 12)
    assert {name: (t.shape, t.dtype) for name, t in a.items()} == {name: (t.shape, t.dtype) for name, t in b.items()}
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5, msg=name)
    if arm == "ngpt":
        assert max(metrics(many, "train/max_norm_deviation").values()) < 1e-6
        for key in ("scale/sqk", "scale/sz", "scale/attn_alpha"):
            x, y = metrics(one, key), metrics(many, key)
            assert max(abs(x[step] / y[step] - 1) for step in x) < 1e-6 and len(x) == 3


@distributed
@pytest.mark.slow
def test_a_checkpoint_is_continued_sharded_or_whole_by_any_number_of_processes(docs, runs, tmp_path):
    """From one process to two sharded ones (which compute a layer's activations twice), and from three sharded ones to one."""
    shutil.copytree(runs / "ngpt-3", tmp_path / "ngpt-3")
    shutil.rmtree(tmp_path / "ngpt-3/checkpoints/step-00000012")
    here(docs, tmp_path, "ngpt-3", "model=ngpt")
    for first, continued in ((runs / "ngpt-1", runs / "continued/ngpt-1"), (runs / "ngpt-3", tmp_path / "ngpt-3")):
        assert (continued / "metrics.stale.jsonl").exists(), "it did not continue"
        assert_agree(runs / "ngpt-1", continued)
        a, b = metrics(first, "train/loss"), metrics(continued, "train/loss")
        assert all(a[step] == b[step] for step in range(1, 7))


@distributed
@pytest.mark.slow
def test_one_process_has_nothing_to_shard(docs, runs, tmp_path):
    assert_same(runs / "ngpt-1", here(docs, tmp_path, "x", "model=ngpt", "parallel=fsdp"))


@distributed
@pytest.mark.slow
def test_compiled_block_by_block_it_gives_the_same_losses(docs, runs, tmp_path):
    if not shutil.which("g++"):
        pytest.skip("torch.compile on the CPU needs a C++ compiler")
    compiled = sharded(docs, tmp_path, "compiled", "model=ngpt", "compile=true", "recompute_layers=1")
    assert_agree(runs / "ngpt-1", compiled, tolerance=1e-4)


@distributed
@pytest.mark.slow
def test_a_variant_whose_scales_are_single_numbers_or_fixed_is_sharded_as_well(runs):
    """One number over two ranks: one has it, the other has nothing."""
    assert_agree(runs / "variant-1", runs / "variant-2")


@distributed
@pytest.mark.slow
def test_adamh_sharded_and_muon_replicated_give_the_numbers_of_one_process(runs):
    """AdamH's radius is that of the whole matrix, also where it was read from a checkpoint; Muon needs its matrices whole."""
    assert_agree(runs / "adamh-1", runs / "adamh-2")
    assert_agree(runs / "adamh-1", runs / "adamh-4")  # hsdp: two copies of two parts
    assert_agree(runs / "muon-1", runs / "muon-2", tolerance=1e-3)  # its products are bf16
    assert (runs / "continued/muon-2/metrics.stale.jsonl").exists(), "it did not continue"
    assert_same(runs / "muon-2", runs / "continued/muon-2")
    assert (runs / "continued/adamh-1/metrics.stale.jsonl").exists(), "it did not continue"
    assert_agree(runs / "adamh-1", runs / "continued/adamh-1")
    radius = {name: float(t) for name, t in tensors(runs / "adamh-2", 12).items() if "radius/" in name}
    one = {name: float(t) for name, t in tensors(runs / "adamh-1", 12).items() if "radius/" in name}
    assert radius == pytest.approx(one, rel=1e-6) and len(one) > 3


# One rank alone is asked to stop, in the middle of the second validation; what each rank holds is printed at its beginning.
ASKS = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
import faulty_train
from engine.config import Config
from cli.entry import run_entry
from engine.trainer import Trainer
if os.environ["RANK"] == "1":
    faulty_train.signal_in_evaluation({number})
validate = Trainer.validate
def show_and_validate(self, *arguments):
    tensors = [*self.raw_model.parameters(), *(t for s in self.optimizer.state.values() for t in s.values() if t.dim())]
    here, whole = sum(t.to_local().numel() for t in tensors), sum(t.numel() for t in tensors)
    print(f"step {{self.state.step}}: holds {{here}} of {{whole}}", flush=True)
    validate(self, *arguments)
    assert all(hasattr(p, "placements") for p in self.raw_model.parameters())  # nothing gathered was left behind
Trainer.validate = show_and_validate
run_entry(faulty_train.main, Config, config_name="train", has_ranks=True)
"""


@distributed
@pytest.mark.slow
def test_a_signal_to_one_rank_in_an_evaluation_stops_all_before_the_same_batch(docs, runs, tmp_path):
    script = tmp_path / "asks.py"
    script.write_text(ASKS.format(root=str(ROOT), tests=str(ROOT / "tests"), number=int(signal.SIGTERM)))
    done = run(str(script), *words(docs, tmp_path, "x", "model=ngpt", "parallel=fsdp"), ranks=2, code=1)
    status = json.loads((tmp_path / "x/status.json").read_text())
    assert (status["state"], status["step"]) == ("preempted", 6), done.stderr[-3000:]
    assert sorted(metrics(tmp_path / "x", "val/loss")) == [0]
    for held, total in re.findall(r"holds (\d+) of (\d+)", done.stdout):
        assert abs(int(held) / int(total) - 1 / 2) < 0.01  # weights, and at step 6 both moments
    assert_same(runs / "ngpt-2", sharded(docs, tmp_path, "x", "model=ngpt"))
    assert metrics(tmp_path / "x", "val/loss") == metrics(runs / "ngpt-2", "val/loss")


@distributed
@pytest.mark.slow
def test_a_sharded_run_is_rolled_back_as_a_whole_one_is(docs, tmp_path):
    """Sample 12 * 9 + 3 is the second rank's; step 10 goes back to the checkpoint of step 6."""
    poisoned = ["poison=111", *words(docs, tmp_path, "one", "model=ngpt", "on_nonfinite=rollback")]
    run("tests/faulty_train.py", *poisoned)
    run("tests/faulty_train.py", *poisoned, "run_name=two", "parallel=fsdp", ranks=2)
    assert_agree(tmp_path / "one", tmp_path / "two")
    for name in ("one", "two"):
        saved = json.loads((tmp_path / name / "checkpoints/step-00000012/trainer.json").read_text())
        assert saved["skipped_batches"] == 4 and saved["nonfinite_events"] == 1


@distributed
@pytest.mark.slow
def test_a_sharded_run_killed_and_asked_to_stop_equals_an_undisturbed_one(docs, runs, tmp_path):
    def torchrun(run_dir):
        return [*TORCHRUN, "--standalone", str(ROOT / "train.py"), *arguments(docs, run_dir, "model=ngpt", "parallel=fsdp")]

    parts = tmp_path / "parts"
    with Job(parts, torchrun(parts)) as job:
        job.wait_for_steps(25)
        for pid in [*ranks_of(parts).values(), job.process.pid]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: job.process.poll() is not None and not processes_of(parts), 30, "every process ended")
    with Job(parts, torchrun(parts)) as job:
        job.wait_for_steps(10)
        os.kill(ranks_of(parts)[1], signal.SIGTERM)
        assert job.finish(60) == 1
        status = json.loads((parts / "status.json").read_text())
        assert status["state"] == "preempted" and 20 < status["step"] < STEPS, job.output[-3000:]
    with Job(parts, torchrun(parts)) as job:
        assert job.finish(240) == 0, job.output[-3000:]
    assert_equal_runs(runs / "whole", parts)


def test_every_rank_evaluates_equally_many_batches(docs):
    manifest = read_manifest(docs)
    file, lengths = open_token_file(docs, "val", manifest), token_byte_lengths(docs, manifest)
    for windows, world_size, batch_size in ((10, 3, 1), (10, 3, 3), (10, 4, 2), (2, 3, 2), (9, 8, 1)):
        some = ValidationSet(file, lengths, 64, windows)
        shares = [list(some.batches(batch_size, rank, world_size)) for rank in range(world_size)]
        assert len({len(share) for share in shares}) == 1
        rows = [row for share in shares for batch in share for row in batch]
        assert {len(batch) for share in shares for batch in share} == {batch_size}
        assert sum(bool((row >= 0).all()) for row in rows) == windows
        assert all(bool((row >= 0).all()) or bool((row < 0).all()) for row in rows)


def test_matrices_stored_in_another_type_are_refused(tmp_path):
    line = refusal("train.py", *words(tmp_path, tmp_path, "x", "parallel=fsdp", "precision=bf16_weights"), code=2)
    assert "parallel=fsdp gathers a block's weights in one type" in line


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_the_large_sizes_have_the_parameters_that_they_state(size):
    text = (ROOT / f"configs/size/{size}.yaml").read_text()
    stated = re.search(r"([\d.]+)B parameters at 50,304 tokens, ([\d.]+)B without", text)
    for arm in ("gpt", "ngpt"):
        config = composed(f"size={size}", f"model={arm}")
        assert config.parallel == "fsdp" and config.model["n_embd"] == 128 * config.model["n_head"]
        model = build_model(config.model, device="meta")
        total = sum(p.numel() for p in model.parameters())
        others = total - 2 * 50304 * config.model["n_embd"]
        for count, billions in ((total, stated[1]), (others, stated[2])):
            assert abs(count / 1e9 - float(billions)) < 0.01, (arm, count)
