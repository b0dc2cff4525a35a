"""The exported folder: what transformers and lm-eval make of it is what the run itself computes, token for token."""

import ast
import json
import random
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
import torch
from corpus_support import write_shards
from foreign_tokenizers import byte_level_json, large_json, sentencepiece_json, write
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from training import ROOT, SMALL, environment, refusal, run

from cli.composition import ConfigError
from corpus.huggingface_tokenizer import HuggingFaceTokenizer
from corpus.manifest import TOKENIZER_NAME, DataError
from corpus.tokenizer import make_tokenizer, packaged_files, tokenizer_json
from engine.checkpoint import CheckpointError
from engine.distributed import Ranks
from engine.generate import Sampling, generate
from engine.trained import load_trained_model, open_tokenizer
from lab.evaluation.downstream import load_tasks, run_tasks
from lab.evaluation.harness import TrainedModel
from lab.evaluation.trained_run import open_run
from lab.export import folder as module
from lab.export.folder import export_run, publish, write_weights
from lab.export.tokenizer import byte_level_content, find_merges, huggingface_content, write_tokenizer

ONE_RANK = Ranks(0, 0, 1, torch.device("cpu"))
CLASSES = {"gpt": "LlamaForCausalLM", "ngpt": "NgptForCausalLM", "bpe": "LlamaForCausalLM"}
CODE = {"configuration_ngpt.py", "modeling_ngpt.py"}
PROMPTS = ["The", "Return", "class A", "x"]
HARD_TEXTS = [
    "Hello, I'm a language model,\n\n  naïve 漢字 🙂 don't 1984\t ",
    "def f(x):\n\treturn  x   \r\n\r\n\n    #  \u00a0\u2003 end \u200d\u3000",
    "<|endoftext|>once<|endoftext|><|endoftext|> upon <|endoftext",
    "\x00\x01\x1b[0m\x7f\x80\x85\u2028\u2029\ufeff\ufffd\U0010ffff",
    "e\u0301 \u1100\u1161 ١٢٣ ⅷ²½ ǅ 'LL 'll 's's'S 👨‍👩‍👧",
    " ",
    "    ",
]


@pytest.fixture(scope="module")
def runs(docs, tmp_path_factory):
    """{name: run folder}: both arms on bytes, nGPT without a padded vocabulary, and a GPT on GPT-2's tokens."""
    folder = tmp_path_factory.mktemp("runs")
    files = write_shards(folder / "shards", [" ".join(HARD_TEXTS)] * 30)
    run(
        "prepare_owt.py",
        "data=local",
        f"data.files={files}",
        f"data.dir={folder / 'bpe_data'}",
        "data.val_fraction=0.3",
    )
    steps = ["max_steps=300", "eval_interval=150", "checkpoint_interval=150", f"out_dir={folder}"]
    run("train.py", *SMALL, *steps, "model=gpt", f"data.dir={docs}", "run_name=gpt")
    run("train.py", *SMALL, *steps, "model=ngpt", "model.vocab_size=257", f"data.dir={docs}", "run_name=ngpt")
    run(
        "train.py",
        *SMALL,
        f"out_dir={folder}",
        "data=local",
        f"data.dir={folder / 'bpe_data'}",
        "data.tokenizer=gpt2",
        "model=gpt",
        "model.vocab_size=50304",
        "run_name=bpe",
        "max_steps=3",
        "eval_interval=3",
    )
    return {name: folder / name for name in CLASSES}


@pytest.fixture(scope="module")
def exports(runs, tmp_path_factory):
    """{name: exported folder}; nGPT's is made by the command."""
    out = tmp_path_factory.mktemp("exports")
    done = run("scripts/export_hf.py", f"run={runs['ngpt']}", f"out={out / 'ngpt'}")
    assert done.stdout == f"wrote {out / 'ngpt'}: {runs['ngpt']} at step 300, float32\n" and not done.stderr
    for name in ("gpt", "bpe"):
        export_run(runs[name], out / name, None, torch.float32)
    return {name: out / name for name in runs}


def request_for(name: str, run_folder: Path, folder: Path) -> dict:
    tokenizer, _ = open_tokenizer(run_folder)
    tokens = torch.randint(0, tokenizer.n_vocab, (3, 32), generator=torch.Generator().manual_seed(1))
    return {
        "name": name,
        "folder": str(folder),
        "class": CLASSES[name],
        "texts": HARD_TEXTS,
        "attention": ["sdpa", "eager"],
        "tokens": tokens.tolist(),
        "prompts": PROMPTS,
        "prompt": tokenizer.encode_ordinary("Return"),
        "new_tokens": 24,
    }


def outside(folder: Path, *arguments: str) -> None:
    """Run Python in a folder where nothing of this repository can be imported, without network."""
    offline = environment(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=str(folder / "hf"))
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=offline, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def answers(runs, exports, tmp_path_factory):
    """{name: (what was asked, what transformers answered)}, in one process: its import takes seconds."""
    folder = tmp_path_factory.mktemp("outside")
    requests = {name: request_for(name, runs[name], exports[name]) for name in runs}
    (folder / "requests.json").write_text(json.dumps(list(requests.values())))
    (folder / "exported_model.py").write_bytes((ROOT / "tests/exported_model.py").read_bytes())
    outside(folder, "exported_model.py", "requests.json")
    return {name: (request, load_file(folder / f"{name}.safetensors")) for name, request in requests.items()}


# ---- the model


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_transformers_computes_what_the_run_computes(name, runs, answers):
    _, model = load_trained_model(runs[name])
    tokenizer, _ = open_tokenizer(runs[name])
    request, found = answers[name]
    tokens, size = torch.tensor(request["tokens"]), tokenizer.n_vocab
    with torch.no_grad():
        logits = (model(tokens) @ model.unembedding().T)[..., :size]
    for implementation in request["attention"]:
        torch.testing.assert_close(found[f"logits/{implementation}"], logits, rtol=1e-5, atol=1e-5)
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(found["loss"], wanted, rtol=1e-5, atol=1e-5)
    assert (found["logits/bfloat16"] - logits).abs().mean() < 0.02 * logits.std(), "bf16 has 8 bits"
    assert found["bfloat16_scales"] == (6 if name == "ngpt" else 0)

    def greedy(text: str) -> list[int]:
        prompt = torch.tensor([tokenizer.encode_ordinary(text)])
        return torch.stack(list(generate(model, prompt, 24, n_tokens=size, sampling=Sampling(temperature=0))))[:, 0].tolist()

    texts = [greedy(text) for text in PROMPTS]
    assert len({tuple(text) for text in texts}) > 1
    for use_cache in (True, False):
        assert found[f"generated/{use_cache}"].tolist()[len(request["prompt"]) :] == greedy("Return")
        assert found[f"batch/{use_cache}"].tolist() == texts, "shorter prompts are padded on the left"
    for number, text in enumerate(HARD_TEXTS):
        assert found[f"ordinary/{number}"].tolist() == tokenizer.encode_ordinary(text)
        assert found[f"parsed/{number}"].tolist() == tokenizer.encode(text, allowed_special="all")


@pytest.mark.slow
def test_the_folders_hold_what_is_read_elsewhere_and_nothing_more(runs, exports):
    files = {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
    }
    for name, folder in exports.items():
        assert {path.name for path in folder.iterdir()} == files | (CODE if name == "ngpt" else set())
        assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "whoever may read one may read all"
        config = json.loads((folder / "config.json").read_text())
        n_tokens = 50257 if name == "bpe" else 257
        assert config["vocab_size"] == n_tokens and config["eos_token_id"] == n_tokens - 1
        assert load_file(folder / "model.safetensors")["lm_head.weight"].shape == (n_tokens, 32)
    card = (exports["ngpt"] / "README.md").read_text()
    for name, outputs in (("gpt", 272), ("ngpt", 257)):
        assert f"(the model was trained with {outputs} outputs; " in (exports[name] / "README.md").read_text()
    assert "trust_remote_code=True" in card and "| training tokens | 76,800 |" in card
    recorded = [json.loads(line) for line in (runs["ngpt"] / "metrics.jsonl").read_text().splitlines()]
    loss = next(line["val/loss"] for line in recorded if line["step"] == 300 and "val/loss" in line)
    assert f"| validation loss | {loss:.4f} nats/token" in card
    for path in exports["gpt"].iterdir():
        assert str(ROOT) not in path.read_text(errors="replace"), "no path of this machine"


@pytest.mark.slow
def test_the_exported_code_needs_torch_and_transformers_alone(exports):
    for file in CODE:
        assert (exports["ngpt"] / file).read_bytes() == (ROOT / "lab/export" / file).read_bytes()
        for node in ast.walk(ast.parse((ROOT / "lab/export" / file).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.split(".")[0] for name in names} <= {"torch", "transformers", "inspect"}, file


@pytest.mark.slow
def test_an_earlier_checkpoint_in_bfloat16(runs, tmp_path):
    for dtype, folder in ((torch.float32, tmp_path / "full"), (torch.bfloat16, tmp_path / "half")):
        assert export_run(runs["ngpt"], folder, 150, dtype) == 150
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    kept = {name for name, weight in half.items() if weight.dtype == torch.float32}
    assert kept == {name for name in full if name.endswith(("_alpha", "sqk"))} and len(kept) == 6
    assert all(torch.equal(half[name].float(), full[name].to(half[name].dtype).float()) for name in full)
    _, model = load_trained_model(runs["ngpt"], 150)
    assert (full["model.layers.1.mlp_alpha"] >= 0).all()
    torch.testing.assert_close(full["lm_head.weight"], model.unembedding().detach())


def test_large_weights_are_sharded(tmp_path):
    weights = {f"w{i}": torch.full((100,), float(i)) for i in range(5)}
    write_weights(dict(weights), torch.float32, tmp_path, 1000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == weights.keys() and len(set(index.values())) == 3
    assert all(torch.equal(load_file(tmp_path / file)[name], weights[name]) for name, file in index.items())
    with pytest.raises(CheckpointError, match="w1: .*not finite"):
        write_weights({"w1": torch.tensor([1.0, torch.nan])}, torch.float32, tmp_path, 1000)


# ---- lm-eval

TASK = {
    "task": "local_choice",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{answer}}",
    "doc_to_choice": "{{choices}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "brier_score"}],
}
HARNESS = """
import json, sys, lm_eval
from lm_eval.tasks import TaskManager
task, *folders = sys.argv[1:]
for folder in folders:
    found = lm_eval.simple_evaluate(model="hf", model_args=f"pretrained={folder},trust_remote_code=True", device="cpu",
        batch_size=8,
        tasks=[json.load(open(task))], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0)
    answers = [sample["filtered_resps"] for sample in found["samples"]["local_choice"]]
    json.dump([found["results"]["local_choice"], answers], open(folder.rpartition("/")[2] + ".json", "w"))
"""


@pytest.mark.slow
def test_lm_eval_finds_the_same_with_its_own_loader(runs, exports, tmp_path):
    draw = random.Random(5)
    words = ["the", "return", "value", "of", "a", "function", "is", "not", "class", "None", "self"]
    rows = [
        {
            "context": draw.choice(words),
            "choices": [f" {draw.choice(words)}", f" {draw.choice(words)}s"],
            "answer": draw.randrange(2),
        }
        for _ in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "task.json").write_text(json.dumps(TASK | {"dataset_kwargs": files}))
    outside(tmp_path, "-c", HARNESS, str(tmp_path / "task.json"), str(exports["gpt"]), str(exports["ngpt"]))
    for name in ("gpt", "ngpt"):
        tasks = load_tasks([str(tmp_path / "task.json")])
        opened = open_run(runs[name], None, None, ONE_RANK)
        own = run_tasks(opened, ONE_RANK, tasks, 8, None, None)["results"]["local_choice"]
        theirs, answers = json.loads((tmp_path / f"{name}.json").read_text())
        model = TrainedModel(opened, ONE_RANK, 8)
        for row, answer in zip(rows, answers, strict=True):
            asked = [SimpleNamespace(args=(row["context"], choice)) for choice in row["choices"]]
            mine = model.loglikelihood(asked, disable_tqdm=True)
            for (own_log_p, own_greedy), (log_p, greedy) in zip(mine, answer, strict=True):
                # The padded outputs of gpt, which are not exported, have a share of the probability that is given back.
                assert -1e-4 < log_p - own_log_p < (0.05 if name == "gpt" else 1e-4) and greedy == own_greedy
        for metric, entry in own.items():
            assert theirs[f"{metric},none"] == pytest.approx(entry["value"], abs=1e-4), metric


# ---- the tokenizer


def exported(tokenizer):
    is_wrapped = isinstance(tokenizer, HuggingFaceTokenizer)
    content = huggingface_content(tokenizer) if is_wrapped else byte_level_content(tokenizer)
    return tokenizers.Tokenizer.from_str(json.dumps(content))


@cache
def gpt2():
    """Return GPT-2's tokenizer, and what export makes of it."""
    tokenizer = make_tokenizer("gpt2")
    return tokenizer, exported(tokenizer)


@pytest.mark.slow
def test_gpt2_comes_out_as_it_was_published(exports):
    folder, published = exports["bpe"], packaged_files()
    assert json.loads((folder / "vocab.json").read_text()) == json.loads(published["encoder.json"].read_text("utf-8"))
    merges = [path.read_text("utf-8").split("\n")[1:] for path in (folder / "merges.txt", published["vocab.bpe"])]
    assert merges[0] == merges[1] and len(merges[0]) == 50001


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t'sd\u00a0\u3000é1²"), max_size=60))
def test_any_text_has_the_same_ids(text):
    ours, theirs = gpt2()
    assert theirs.encode(text).ids == ours.encode(text, allowed_special="all")


def test_real_text_has_the_same_ids(docs):
    text = (docs / "val.bin").read_bytes()[::2].decode("utf-8", "replace")  # bytes as uint16; 256 becomes 0
    assert len(text) > 100_000
    ours, theirs = gpt2()
    assert theirs.encode(text).ids == ours.encode_ordinary(text)
    encoding = make_tokenizer("bytes")
    assert exported(encoding).encode(text).ids == encoding.encode_ordinary(text)


@pytest.mark.parametrize("make", [sentencepiece_json, byte_level_json, large_json])
def test_a_wrapped_tokenizer_comes_out_as_it_went_in(make, tmp_path):
    tokenizer = make_tokenizer("mine", write(tmp_path / "in.json", make()))
    write_tokenizer(tokenizer, tmp_path, 64)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (*HARD_TEXTS, "class Path:\n    pass\n"):
        if not any(token.content in text for token in library.get_added_tokens_decoder().values()):
            assert library.encode(text).ids == tokenizer.encode_ordinary(text)
            assert library.decode(library.encode(text).ids) == text
    assert library.encode(tokenizer.eos_token).ids == [tokenizer.eot_token]
    stated = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert stated["eos_token"] == stated["bos_token"] == tokenizer.eos_token and stated["model_max_length"] == 64


def test_a_tokenizer_that_would_give_other_ids_is_refused(tmp_path):
    ranks = {bytes([value]): value for value in range(256)} | {b"ab": 256}
    import tiktoken

    other = tiktoken.Encoding("other", pat_str=r"\d|.", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 257})
    with pytest.raises(DataError, match="pattern that is not GPT-2's"):
        write_tokenizer(other, tmp_path, 64)
    assert find_merges(ranks) == [(b"a", b"b")]
    with pytest.raises(DataError, match="token 257 is not a merge"):
        find_merges(ranks | {b"xyz": 257})
    assert not any(tmp_path.iterdir())


# ---- what is refused, and what is left behind


@pytest.mark.slow
def test_the_command_refuses_in_one_line(runs, exports, tmp_path):
    for arguments, code, said in [
        ((f"run={runs['gpt']}", "dtyp=float32"), 2, "did you mean 'dtype'"),
        ((f"run={runs['gpt']}", "checkpoint=7"), 4, "there are: 300, 150"),
    ]:
        assert said in refusal("scripts/export_hf.py", *arguments, f"out={tmp_path / 'out'}", code=code)
    before = {path: path.read_bytes() for path in exports["gpt"].iterdir()}
    line = refusal("scripts/export_hf.py", f"run={runs['ngpt']}", f"out={exports['gpt']}", code=2)
    assert "nothing is overwritten" in line
    assert {path: path.read_bytes() for path in exports["gpt"].iterdir()} == before
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_other_arms_and_unsound_runs_are_refused(runs, tmp_path):
    out = tmp_path / "out"

    def copy(name: str) -> Path:
        shutil.copytree(runs["gpt"], tmp_path / name)
        return tmp_path / name

    config = copy("other") / "config.yaml"
    for arm, other in (("gpt", "gpt_qknorm"), ("ngpt", "ngpt_ablation")):
        text = (runs[arm] / "config.yaml").read_text()
        config.write_text(text.replace(f"  name: {arm}\n", f"  name: {other}\n", 1))
        with pytest.raises(ConfigError, match=f"model={other} cannot be exported; gpt and ngpt can"):
            export_run(tmp_path / "other", out, None, torch.float32)
    with pytest.raises(ConfigError, match="no such run folder"):
        export_run(tmp_path / "nowhere", out, None, torch.float32)
    begun = copy("begun")
    shutil.rmtree(begun / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        export_run(begun, out, None, torch.float32)
    damaged = copy("damaged") / "checkpoints/step-00000300/model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256 differs"):
        export_run(tmp_path / "damaged", out, None, torch.float32)
    foreign = copy("foreign")
    (foreign / TOKENIZER_NAME).write_bytes(tokenizer_json(gpt2()[0]))
    with pytest.raises(DataError, match="not the tokenizer that the run was trained with"):
        export_run(foreign, out, None, torch.float32)
    (foreign / "environment.json").unlink()
    with pytest.raises(DataError, match="50,257 tokens, but the model has 272 outputs"):
        export_run(foreign, out, None, torch.float32)
    assert not out.exists()


@pytest.mark.slow
def test_an_export_is_there_whole_or_not_at_all(runs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    leftover = tmp_path / ".exporting-out"
    leftover.mkdir()
    (leftover / "half").write_text("of an export that was killed")

    def fail(*_):
        assert not (leftover / "half").exists() and (leftover / "tokenizer.json").exists() and not out.exists()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_weights", fail)
        with pytest.raises(ConfigError, match="No space left") as caught:
            export_run(runs["gpt"], out, None, torch.float32)
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match=r"pip install -r requirements\.txt"):
        patch.setitem(sys.modules, "huggingface_hub", None)
        export_run(runs["gpt"], out, None, torch.float32)
    assert not any(tmp_path.iterdir())
    out.mkdir()  # empty: it may be taken
    publish(out, lambda folder: (folder / "a").write_text("b"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "a").read_text() == "b"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="out=.*file: exists already"):
        export_run(runs["gpt"], tmp_path / "file", None, torch.float32)
