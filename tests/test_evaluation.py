"""Evaluation beyond training: perplexity of a run, length extrapolation, lm-eval's tasks, each against direct computation."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training import SMALL, metrics, refusal, run

from cli.composition import ConfigError
from corpus.manifest import TOKENIZER_NAME, DataError
from corpus.tokenizer import make_tokenizer
from engine.distributed import Ranks
from engine.loss import IGNORED, NextTokenLoss
from lab.evaluation import downstream, long_text
from lab.evaluation.cli import EVALUATE, open_runs
from lab.evaluation.downstream import averages, load_tasks, read_task_file, render, run_tasks
from lab.evaluation.extrapolation import extrapolate, over_seeds, seed_groups
from lab.evaluation.extrapolation import render as render_extrapolation
from lab.evaluation.extrapolation_plot import draw_extrapolation
from lab.evaluation.harness import TrainedModel, cut_windows
from lab.evaluation.long_text import choose_from_bins, choose_spans, deal_spans, read_long_text
from lab.evaluation.scoring import score_tokens
from lab.evaluation.settings import check_common, check_different, check_multiples
from lab.evaluation.trained_run import MeasuredRun, open_bins, open_run

ONE_RANK = Ranks(0, 0, 1, torch.device("cpu"))
ARMS = ("gpt", "ngpt")


@pytest.fixture(scope="module")
def folders(docs, tmp_path_factory):
    """Both arms, trained a little on the embedded corpus: {arm: run folder}."""
    out = tmp_path_factory.mktemp("runs")
    for arm in ARMS:
        steps = ["max_steps=80", "eval_interval=40", "checkpoint_interval=40"]
        run("train.py", *SMALL, *steps, f"model={arm}", f"data.dir={docs}", f"out_dir={out}", f"run_name={arm}")
    return {arm: out / arm for arm in ARMS}


@pytest.fixture(scope="module")
def runs(folders):
    return {arm: open_run(folder, None, None, ONE_RANK) for arm, folder in folders.items()}


@torch.no_grad()
def direct(run: MeasuredRun, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Return log p(continuation | context) in float64 from one forward pass, and whether each token is the likeliest."""
    ids = [*context, *continuation]
    logits = F.linear(run.model(torch.tensor([ids[:-1]])), run.model.unembedding())[0].double()
    log_p = logits.log_softmax(dim=-1)[len(context) - 1 :]
    wanted = torch.tensor(continuation)
    chosen = log_p[:, : run.tokenizer.n_vocab].argmax(dim=-1)
    return log_p[torch.arange(len(wanted)), wanted].sum().item(), bool((chosen == wanted).all())


# ---- scores and perplexity


@pytest.mark.parametrize("arm", ARMS)
def test_scores_are_those_of_the_training_loss_and_of_a_plain_softmax(arm, runs, monkeypatch):
    run = runs[arm]
    tokens = torch.randint(0, 257, (3, 21), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[1, :7] = IGNORED
    monkeypatch.setattr("lab.evaluation.scoring.MAX_LOGITS", 272 * 5)  # several chunks, the last not full
    log_p, is_greedy = score_tokens(run.model, inputs, targets, 257)
    assert log_p[1, :7].eq(0).all() and not is_greedy[1, :7].any() and log_p[targets != IGNORED].lt(0).all()
    for row in range(3):
        skipped = 7 if row == 1 else 0
        ids = tokens[row].tolist()
        expected, _ = direct(run, ids[: skipped + 1], ids[skipped + 1 :])
        assert log_p[row].sum().item() == pytest.approx(expected, rel=1e-5)
    whole, _ = score_tokens(run.model, inputs, tokens[:, 1:], 257)
    assert -whole.sum().item() == pytest.approx(NextTokenLoss(run.model)(tokens).item(), rel=1e-6)


def test_the_likeliest_token_is_marked_and_padding_of_the_vocabulary_never(runs):
    run = runs["gpt"]
    inputs = torch.arange(12)[None]
    with torch.no_grad():
        best = F.linear(run.model(inputs), run.model.unembedding()).argmax(dim=-1)
    assert score_tokens(run.model, inputs, best, 257)[1].all()
    assert not score_tokens(run.model, inputs, best, int(best.min()))[1].any(), "ids from n_tokens on cannot be chosen"


def test_evaluate_repeats_the_validation_of_training(docs, folders):
    done = run("scripts/evaluate.py", f"run={folders['ngpt']}", "device=cpu")
    result = json.loads(done.stdout)
    recorded = metrics(folders["ngpt"], "val/loss")[80]
    assert result["nats_per_token"] == pytest.approx(recorded, rel=1e-6) and result["step"] == 80
    assert result["recorded_in_training"] == recorded
    assert result["bits_per_byte"] == pytest.approx(metrics(folders["ngpt"], "val/bits_per_byte")[80], rel=1e-6)
    assert result["windows"] == 20 and result["tokens"] == 20 * 32 and result["data"] == str(docs)
    assert len(done.stderr.strip().splitlines()) == 1 and "nats/token" in done.stderr


def test_several_runs_make_one_table(folders, capsys):
    settings = EVALUATE.parse([str(folders["gpt"]), str(folders["ngpt"]), "device=cpu", "windows=4"])
    EVALUATE.main(settings)
    output = capsys.readouterr()
    results = [json.loads(line) for line in output.out.splitlines()]
    header, _, *rows = output.err.splitlines()[1:]
    assert [result["run"] for result in results] == ["gpt", "ngpt"] and header.split()[:2] == ["run", "step"]
    for row, result in zip(rows, results, strict=True):
        assert row.split()[0] == result["run"] and f"{result['nats_per_token']:.4f}" in row.split()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_evaluate_an_earlier_checkpoint_as_one_does(docs, folders):
    arguments = (
        "scripts/evaluate.py",
        f"run={folders['gpt']}",
        "checkpoint=40",
        f"data={docs}",
        "sequence_length=100",
        "windows=31",
        "batch_size=4",
        "device=cpu",
    )
    one, two = (json.loads(run(*arguments, ranks=ranks).stdout) for ranks in (1, 2))
    assert one["recorded_in_training"] is None, "other windows than in training"
    assert one["step"] == 40 and one["sequence_length"] == 100 and one["windows"] == 31
    for key in ("nats_per_token", "perplexity", "bits_per_byte"):
        assert two[key] == pytest.approx(one[key], rel=1e-6)
    assert {k: v for k, v in one.items() if isinstance(v, (int, str))} == {
        k: v for k, v in two.items() if isinstance(v, (int, str))
    }


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("dta=x", 2, "did you mean 'data'"),
        ("checkpoint=41", 4, "there are: 80, 40"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(folders, change, code, said):
    assert said in refusal("scripts/evaluate.py", f"run={folders['gpt']}", change, "device=cpu", code=code)


def test_values_that_cannot_be_are_refused():
    good = {"device": "cpu", "precision": None, "batch_size": 3}
    check_common(SimpleNamespace(**good), "batch_size")
    for key, value in (("device", "tpu"), ("precision", "fp16"), ("batch_size", 0)):
        with pytest.raises(ConfigError, match=f"{key}={value}"):
            check_common(SimpleNamespace(**(good | {key: value})), "batch_size")
    with pytest.raises(ConfigError, match="split=test"):
        check_common(SimpleNamespace(**good, split="test"))
    assert check_different("runs", ["a", "b"]) == ["a", "b"]
    for bad in ([], ["a", "b", "a"]):
        with pytest.raises(ConfigError, match="runs"):
            check_different("runs", bad)


def test_bins_of_another_tokenizer_or_with_other_tokens_are_refused(docs, folders, runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(docs, copy)
    assert open_bins(runs["gpt"], copy, "val", 32).name == "docs"
    with pytest.raises(DataError, match=re.escape("nowhere/manifest.json: missing")):
        open_bins(runs["gpt"], tmp_path / "nowhere", "val", 32)
    manifest = json.loads((copy / "manifest.json").read_text())
    with open(copy / "val.bin", "r+b") as file:
        file.write(b"\x07")
    with pytest.raises(DataError, match=re.escape("val.bin")):
        open_bins(runs["gpt"], copy, "val", 32)
    manifest["tokenizer"]["digest"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="another tokenizer"):
        open_bins(runs["gpt"], copy, "train", 32)
    other = tmp_path / "run"
    shutil.copytree(folders["gpt"], other)
    (other / TOKENIZER_NAME).write_bytes((other / TOKENIZER_NAME).read_bytes() + b"\n")
    with pytest.raises(DataError, match="environment.json names another"):
        open_run(other, None, None, ONE_RANK)


def test_precision_is_that_of_training_unless_asked(folders):
    assert open_run(folders["gpt"], None, None, ONE_RANK).matmul == "float32"
    run = open_run(folders["gpt"], None, "bf16", ONE_RANK)
    with run.autocast():
        assert F.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16


# ---- length extrapolation


class Tokens:
    """A token file in memory."""

    def __init__(self, ids):
        self.ids = np.array(ids, dtype=np.uint16)

    def __len__(self):
        return len(self.ids)

    def read_window(self, start, length):
        assert start >= 0 and start + length <= len(self.ids)
        return self.ids[start : start + length].copy()


def test_spans_are_dealt_over_documents_and_never_leave_one(monkeypatch):
    assert deal_spans([10, 31, 21, 9], 10, 9) == ([(1, 0), (2, 0), (1, 10), (2, 10), (1, 20)], 2)
    assert deal_spans([31, 21], 10, 3)[0] == [(0, 0), (1, 0), (0, 10)]
    monkeypatch.setattr(long_text, "SCANNED_TOKENS", 7)  # documents reach over the pieces that are scanned
    documents = [list(range(1, 32)), [40, 41], list(range(50, 71))]
    joined = [id for document in documents for id in (*document, 0)]
    text = choose_from_bins(Tokens(joined), 0, "x", 10, 9)
    assert text.documents == 2 and text.spans.dtype == np.int64
    assert [span[0] for span in text.spans] == [1, 50, 11, 60, 21]
    assert all((np.diff(span) == 1).all() and len(span) == 11 for span in text.spans)
    again = choose_spans([np.array(document) for document in documents], "x", 10, 9)
    assert (again.spans == text.spans).all()


def test_without_a_long_document_the_stream_is_cut_and_said_so():
    text = choose_from_bins(Tokens([1, 2, 3, 0] * 30), 0, "x", 20, 3)
    assert text.spans.shape == (3, 21) and text.documents == 0 and not text.describe()["inside_documents"]
    with pytest.raises(DataError, match="120 tokens are fewer than one span"):
        choose_from_bins(Tokens([1, 2, 3, 0] * 30), 0, "x", 120, 3)
    with pytest.raises(DataError, match="0 tokens"):
        choose_spans([], "x", 120, 3)


def test_text_comes_from_files_from_pg19_and_from_the_runs_own_bins(runs, docs, tmp_path, monkeypatch):
    book = "It was the best of times, it was the worst of times. " * 9
    (tmp_path / "a.txt").write_text(book)
    (tmp_path / "b.jsonl").write_text(json.dumps({"story": book.upper()}) + "\n" + json.dumps({"story": "short"}))
    txt = read_long_text(runs["gpt"], str(tmp_path / "*.txt"), "val", "text", 128, 300)
    assert bytes(txt.spans[1].tolist()) == book.encode()[128:257] and txt.documents == 1 and len(txt.spans) == 2
    lines = read_long_text(runs["gpt"], str(tmp_path / "*.jsonl"), "val", "story", 128, 10)
    assert bytes(lines.spans[0].tolist()) == book.upper().encode()[:129] and len(lines.spans) == 1

    def load_dataset(name, **settings):
        assert name == "emozilla/pg19" and settings == {"split": "test", "streaming": True}
        return iter([{"text": book, "short_book_title": "Two Cities"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert (read_long_text(runs["gpt"], "pg19", "val", "text", 128, 300).spans == txt.spans).all()

    def refuse(name, **settings):
        raise ConnectionError("no route to the hub\nsecond line")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match=r"no route to the hub\)") as caught:
        read_long_text(runs["gpt"], "pg19", "val", "text", 128, 300)
    assert "\n" not in str(caught.value)
    own = read_long_text(runs["gpt"], None, "val", "text", 1024, 4096)
    assert own.source == "docs val" and own.documents == 4 and not (own.spans == 256).any()
    with pytest.raises(DataError, match="neither a folder"):
        read_long_text(runs["gpt"], str(tmp_path / "*.md"), "val", "text", 128, 300)


@pytest.mark.parametrize("arm", ARMS)
def test_extrapolation_is_what_direct_computation_gives_on_the_same_tokens(arm, runs):
    run, multiples = runs[arm], [1, 2, 8]
    text = read_long_text(run, None, "val", "text", 8 * 32, 3 * 256)
    (measured,) = extrapolate([run], ONE_RANK, text, multiples)["runs"]
    for row, multiple in zip(measured["lengths"], multiples, strict=True):
        length = 32 * multiple
        assert row["length"] == length
        windows = [span[i : i + length + 1].tolist() for span in text.spans for i in range(0, 256, length)]
        nats = [-direct(run, window[:1], window[1:])[0] for window in windows]
        assert row["all"]["nats_per_token"] == pytest.approx(sum(nats) / (3 * 256), rel=1e-6)
        assert np.mean(row["nats_by_position"]) == pytest.approx(row["all"]["nats_per_token"], rel=1e-9)
        ends = [direct(run, span[256 - length : -32].tolist(), span[-32:].tolist())[0] for span in text.spans]
        assert row["last"]["nats_per_token"] == pytest.approx(-sum(ends) / (3 * 32), rel=1e-6)
        assert row["last"]["standard_error"] == pytest.approx(np.std(np.array(ends) / 32, ddof=1) / 3**0.5, rel=1e-5)
    assert measured["lengths"][-1]["nats_by_position"][-1] == pytest.approx(row["last"]["nats_per_token"], rel=1e-9)


def test_runs_that_differ_in_their_seed_alone_are_averaged(runs, tmp_path):
    gpt, ngpt = runs["gpt"], runs["ngpt"]
    second = replace(gpt, folder=Path("runs/gpt-2"), config=replace(gpt.config, seed=2, run_name="gpt-2"))
    hotter = replace(gpt, folder=Path("runs/gpt-3"), config=replace(gpt.config, seed=3, learning_rate=1.0))
    assert seed_groups([gpt, ngpt, second, hotter]) == [[0, 2], [1], [3]]
    text = read_long_text(gpt, None, "val", "text", 2 * 32, 3 * 64)
    result = extrapolate([gpt, ngpt, second], ONE_RANK, text, [1, 2])
    assert [group["runs"] for group in result["seeds"]] == [[gpt.name, "gpt-2"]]
    shown = render_extrapolation(result)
    assert f"mean of 2 seeds (step {gpt.step:,}; standard errors over seeds)" in shown and f"\n{ngpt.name} (" in shown
    assert draw_extrapolation(result, tmp_path).path == tmp_path / "extrapolation.png"
    assert (tmp_path / "extrapolation.png").read_bytes().startswith(b"\x89PNG")


def test_the_mean_over_seeds():
    rows = [
        {
            "run": f"gpt-seed{seed}",
            "step": 9,
            "lengths": [{"multiple": 2, "length": 64, **dict.fromkeys(("all", "last"), {"nats_per_token": x})}],
        }
        for seed, x in ((1, 1.0), (2, 2.0), (3, 6.0))
    ]
    group = over_seeds(rows)
    assert (group["name"], group["step"], group["runs"]) == ("gpt-seed*", 9, ["gpt-seed1", "gpt-seed2", "gpt-seed3"])
    (row,) = group["lengths"]
    assert (row["multiple"], row["length"]) == (2, 64)
    assert row["all"] == {
        "nats_per_token": 3.0,
        "standard_error": pytest.approx((7 / 3) ** 0.5),  # the variance of 1, 2, 6 is 7
        "perplexity": pytest.approx(np.exp(3)),
        "lowest_nats": 1.0,
        "highest_nats": 6.0,
    }


def test_lengths_that_do_not_share_their_text_are_refused():
    check_multiples([1, 2, 6])
    for bad, said in (([1, 3, 8], "3 does not divide 8"), ([2, 1], "rising"), ([0, 1], "from 1 on"), ([], "whole")):
        with pytest.raises(ConfigError, match=said):
            check_multiples(bad)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_extrapolate_both_arms_as_one_does(folders, runs, docs, tmp_path):
    done = run(
        "scripts/extrapolate.py",
        f"runs={folders['gpt']},{folders['ngpt']}",
        f"data={docs}",
        "multiples=[1,2,8]",
        "max_tokens=768",
        f"out={tmp_path / 'out'}",
        "device=cpu",
        ranks=2,
    )
    two = json.loads((tmp_path / "out/extrapolation.json").read_text())
    text = read_long_text(runs["gpt"], str(docs), "val", "text", 256, 768)
    one = extrapolate(list(runs.values()), ONE_RANK, text, [1, 2, 8])
    assert two["text"] == one["text"] and [r["arm"] for r in two["runs"]] == ["gpt", "ngpt"]
    for a, b in zip(one["runs"], two["runs"], strict=True):
        for x, y in zip(a["lengths"], b["lengths"], strict=True):
            assert y["all"]["perplexity"] == pytest.approx(x["all"]["perplexity"], rel=1e-9)
            assert y["last"]["perplexity"] == pytest.approx(x["last"]["perplexity"], rel=1e-9)
    assert render_extrapolation(one) in done.stdout and "inside 3 documents" in done.stdout
    picture = (tmp_path / "out/extrapolation.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and 10_000 < len(picture) < 400_000
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"extrapolation.json", "extrapolation.png"}


# ---- lm-eval: the adapter


def requests(*arguments):
    return [SimpleNamespace(args=pair) for pair in arguments]


def test_windows_score_each_token_once_with_the_most_context():
    # The worked example in lm_eval.api.model.LM.loglikelihood_rolling; 99 stands for the beginning of the text.
    windows = cut_windows([99], list(range(10)), 4)
    assert windows == [([99, 0, 1, 2, 3], 4), ([3, 4, 5, 6, 7], 4), ([5, 6, 7, 8, 9], 2)]
    assert cut_windows([1, 2, 3], [4, 5], 8) == [([1, 2, 3, 4, 5], 2)]
    assert cut_windows([1, 2, 3], [4, 5], 3) == [([2, 3, 4, 5], 2)], "the context is cut on its left"
    assert cut_windows([1, 2, 3], [4, 5], 2) == [([3, 4, 5], 2)]
    assert cut_windows([1, 2, 3], [], 2) == []


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("arm", ARMS)
def test_loglikelihoods_are_those_of_the_model_itself(arm, batch_size, runs):
    run = runs[arm]
    model = TrainedModel(run, ONE_RANK, batch_size)
    eot, long = [256], "The quick brown fox jumps over the lazy dog, again and again."
    cases = [
        (("Return the ", "length"), list(b"Return the"), list(b" length")),  # the space is scored
        (("Return the", " length"), list(b"Return the"), list(b" length")),
        (("", "def"), eot, list(b"def")),
        (("  ", "def"), eot, list(b"  def")),
        ((long, " end"), list(long.encode())[-(32 + 1 - 4) :], list(b" end")),  # cut on the left
        (("a", "<|endoftext|>"), list(b"a"), list(b"<|endoftext|>")),  # ordinary text
        (("naïve", " ☃"), list("naïve".encode()), list(" ☃".encode())),
    ]
    answers = model.loglikelihood(requests(*(pair for pair, _, _ in cases), ("x", "")), disable_tqdm=True)
    for (pair, context, continuation), (log_p, is_greedy) in zip(cases, answers[:-1], strict=True):
        expected = direct(run, context, continuation)
        assert log_p == pytest.approx(expected[0], rel=1e-5), pair
        assert is_greedy == expected[1], pair
    assert answers[-1] == (0.0, True), "nothing is certain"


def test_long_texts_are_scored_in_windows(runs):
    run = runs["ngpt"]
    model = TrainedModel(run, ONE_RANK, 2)
    ids = list(b"class Path: " * 6)  # 72 tokens: 32, 32 and the last 8 in a window of 32
    pieces = [direct(run, [256], ids[:32]), direct(run, ids[31:32], ids[32:64]), direct(run, ids[39:64], ids[64:])]
    text = bytes(ids).decode()
    (rolling, empty) = model.loglikelihood_rolling(requests((text,), ("",)), disable_tqdm=True)
    assert rolling == pytest.approx(sum(log_p for log_p, _ in pieces), rel=1e-5) and empty == 0
    (after,) = model.loglikelihood(requests(("", text)), disable_tqdm=True)
    assert after[0] == rolling


def test_a_token_over_the_boundary_leaves_something_to_score():
    run = SimpleNamespace(tokenizer=make_tokenizer("gpt2"), sequence_length=32, tokenizer_digest="0" * 64)
    model = TrainedModel(run, ONE_RANK, 1)
    assert model.eot_token_id == 50256 and model.max_length == 32
    assert model.encode_request("Hello", " world") == ([15496], [995])
    assert model.encode_request("Hello ", "world") == ([15496], [995])
    hel, lo = run.tokenizer.encode_ordinary("Hel"), run.tokenizer.encode_ordinary("lo")
    assert len(hel) == len(run.tokenizer.encode_ordinary("Hello")) == 1
    assert model.encode_request("Hel", "lo") == (hel, lo)
    assert 50256 not in model.tok_encode("<|endoftext|>")


def test_generation_is_greedy_and_ends_at_the_stop(runs):
    run = runs["gpt"]
    model = TrainedModel(run, ONE_RANK, 4)
    free, empty = model.generate_until(requests(("Return the", {"max_gen_toks": 12, "until": []}), ("", {"max_gen_toks": 3})), True)
    ids = list(b"Return the")
    for byte in free.encode():
        with torch.no_grad():
            logits = F.linear(run.model(torch.tensor([ids[-32:]])), run.model.unembedding())[0, -1, :257]
        assert byte == logits.argmax().item()
        ids.append(byte)
    assert len(free.encode()) == 12 and len(empty.encode()) <= 3
    stop = free[5:7]
    (cut,) = model.generate_until(requests(("Return the", {"max_gen_toks": 12, "until": [stop, "never"]})), True)
    assert cut == free[: free.index(stop)]
    with pytest.raises(ConfigError, match="greedy"):
        model.generate_until(requests(("x", {"do_sample": True, "temperature": 0.7})), True)


# ---- lm-eval: tasks

CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: choice.jsonl}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1}}
"""


@pytest.fixture(scope="module")
def tasks(docs, tmp_path_factory):
    """A multiple-choice task as YAML and one like lambada as JSON; the continuations are the corpus's own, or shuffled."""
    folder = tmp_path_factory.mktemp("tasks")
    tokens = np.fromfile(docs / "train.bin", dtype="<u2")
    random = np.random.default_rng(3)
    rows, last = [], []
    while len(rows) < 24:
        start = random.integers(len(tokens) - 40)
        piece = tokens[start : start + 28]
        if (piece < 128).all():
            context, seen = bytes(piece[:16].tolist()).decode(), bytes(piece[16:].tolist()).decode()
            other = bytes(random.integers(33, 127, 12).tolist()).decode()
            answer = len(rows) % 2
            rows.append({"context": context, "choices": [other, seen] if answer else [seen, other], "answer": answer})
            last.append({"text": f"{context.strip() or 'x'} {seen.split()[0] if seen.split() else 'the'}"})
    (folder / "choice.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "last.jsonl").write_text("\n".join(map(json.dumps, last)))
    (folder / "choice.yaml").write_text(CHOICE.format(cache=folder / "cache"))
    cloze = {
        "task": "local_last_word",
        "dataset_path": "json",
        "test_split": "test",
        "output_type": "loglikelihood",
        "dataset_kwargs": {"data_files": {"test": "last.jsonl"}, "cache_dir": str(folder / "cache")},
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
    }
    (folder / "last.json").write_text(json.dumps(cloze))
    return [str(folder / "choice.yaml"), str(folder / "last.json")]


def test_a_trained_model_prefers_what_it_has_seen(runs, tasks):
    report = run_tasks(runs["ngpt"], ONE_RANK, load_tasks(tasks), 8, None, None)
    choice, last = report["results"]["local_choice"], report["results"]["local_last_word"]
    assert choice["acc"]["value"] >= 0.9 and choice["acc_norm"]["value"] >= 0.9, "chance is one half"
    assert choice["acc"]["stderr"] is not None and report["examples"] == {"local_choice": 24, "local_last_word": 24}
    assert report["versions"]["lm_eval"] and re.fullmatch(r"[0-9a-f]{64}", report["task_hashes"]["local_choice"])
    assert json.loads(json.dumps(report)) == report and averages(report["results"]) is None
    table = render([report])
    assert f"| local_choice | 24 | acc | {100 * choice['acc']['value']:.2f} |" in table
    assert f"| local_last_word | 24 | perplexity | {last['perplexity']['value']:.2f} |" in table
    assert "LLaMA-2 vocabulary" in table
    both = render([report, report | {"run": "other"}])
    error = f"{100 * choice['acc']['value']:.2f} +- {100 * choice['acc']['stderr']:.2f}"
    assert f"| local_choice | 24 | acc | {error} | {error} |" in both and "| ngpt at step 80 | other at step 80 |" in both


def test_runs_of_one_name_are_told_apart_by_their_folders(folders, tmp_path):
    """As those of two sweeps: under one name the second's numbers would replace the first's."""
    for sweep in ("one", "two"):
        shutil.copytree(folders["gpt"], tmp_path / sweep / "gpt")
    settings = SimpleNamespace(runs=[f"{tmp_path}/one/gpt", f"{tmp_path}/one/../two/gpt"], precision=None)
    assert [run.name for run in open_runs(settings, ONE_RANK)] == ["one/gpt", "two/gpt"]
    settings.runs = [f"{tmp_path}/one/gpt", str(folders["ngpt"])]
    assert [run.name for run in open_runs(settings, ONE_RANK)] == ["gpt", "ngpt"]
    with pytest.raises(ConfigError, match="listed twice"):
        check_different("runs", ["runs/a", "./runs/b/../a"])


@pytest.mark.slow
def test_the_tasks_of_runs_of_one_name_are_written_apart(folders, tasks, tmp_path, monkeypatch):
    for name, value in (("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1"), ("HF_HOME", str(tmp_path / "hf"))):
        monkeypatch.setenv(name, value)
    for sweep in ("one", "two"):
        shutil.copytree(folders["gpt"], tmp_path / sweep / "gpt")
    run(
        "scripts/downstream.py",
        f"runs={tmp_path}/one/gpt,{tmp_path}/two/gpt",
        f"tasks={tasks[0]}",
        f"out={tmp_path / 'out'}",
        "device=cpu",
    )
    written = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.json"))
    assert list(map(str, written)) == ["one/gpt-80.json", "two/gpt-80.json"]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_answer_exactly_as_one_does(folders, runs, tasks, tmp_path, monkeypatch):
    for name, value in (("HF_HUB_OFFLINE", "1"), ("HF_DATASETS_OFFLINE", "1"), ("HF_HOME", str(tmp_path / "hf"))):
        monkeypatch.setenv(name, value)
    done = run(
        "scripts/downstream.py",
        f"run={folders['gpt']}",
        f"tasks={tasks[0]},{tasks[1]}",
        "batch_size=5",
        f"out={tmp_path / 'out'}",
        "device=cpu",
        ranks=2,
    )
    (path,) = (tmp_path / "out").iterdir()
    one = run_tasks(runs["gpt"], ONE_RANK, load_tasks(tasks), 5, None, None)
    assert path.name == "gpt-80.json" and json.loads(path.read_text()) == one
    assert done.stdout.startswith(render([one])), "the table, once"


@pytest.mark.slow
def test_the_papers_tasks_run_as_lm_eval_defines_them(runs, monkeypatch):
    """The data sets alone are replaced by a few rows of their form: no test uses the network."""
    import datasets
    import lm_eval.tasks

    def rows(path, name=None, **settings):
        assert "trust_remote_code" not in settings
        arc = {
            "id": "1",
            "question": "What is hot?",
            "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
            "answerKey": "B",
        }
        swag = {
            "activity_label": "Run",
            "ctx_a": "A man runs.",
            "ctx_b": "he",
            "endings": ["stops.", "flies.", "x", "y"],
            "label": "0",
        }
        grande = {
            "sentence": "The cup did not fit in the bag as the _ was small.",
            "option1": "cup",
            "option2": "bag",
            "answer": "2",
        }
        wsc = {
            "text": "The men saw the dogs, and they barked.",
            "pronoun": "they",
            "pronoun_loc": 27,
            "quote": "",
            "quote_loc": 0,
            "options": ["The men", "The dogs"],
            "label": 1,
            "source": "",
        }
        lambada = {"text": "She opened the door and saw the door"}
        row = {
            "allenai/ai2_arc": arc,
            "Rowan/hellaswag": swag,
            "allenai/winogrande": grande,
            "lighteval/winograd_wsc": wsc,
            "EleutherAI/lambada_openai": lambada,
        }[path]
        one = datasets.Dataset.from_list([row])
        return datasets.DatasetDict({"train": one, "validation": one, "test": one})

    # Of lm-eval's thousands of task files only those folders are read: all of them take seconds, three times.
    folders = [Path(lm_eval.tasks.__file__).parent / name for name in ("arc", "hellaswag", "winogrande", "wsc273", "lambada")]
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=folders)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_defaults: manager)
    monkeypatch.setattr("datasets.load_dataset", rows)
    names = list(downstream.PAPER_TASKS)
    report = run_tasks(runs["gpt"], ONE_RANK, load_tasks(names), 4, None, None)
    assert list(report["results"]) == names and set(report["results"]["arc_easy"]) == {"acc", "acc_norm"}
    assert set(report["results"]["lambada_openai"]) == {"acc", "perplexity"}
    accuracies = [report["results"][name]["acc"]["value"] for name in names]
    assert averages(report["results"])["acc"] == pytest.approx(sum(accuracies) / 5)
    table = render([report])
    assert "| 53.07 | 52.65 |" in table and "| 54.44 | 54.71 |" in table and table.count("50.13") == 1
    with pytest.raises(ConfigError, match="did you mean 'arc_easy'"):
        load_tasks(["arc_esy"])

    def refuse(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match="wsc273: the task cannot be loaded .*offline"):
        load_tasks(["wsc273"])


def test_task_files_are_data_and_cannot_import_code(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef process(docs): return docs\n")
    (tmp_path / "bad.yaml").write_text("task: x\ndataset_path: json\nprocess_docs: !function evil.process\n")
    (tmp_path / "pickled.yaml").write_text("!!python/object/apply:os.mkdir [x]\n")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "included.yaml").write_text("task: x\ninclude: bad.yaml\n")
    for name, said in (
        ("bad.yaml", "!function"),
        ("pickled.yaml", "plain data"),
        ("list.json", "not a task"),
        ("none.yaml", "No such file"),
        ("included.yaml", "not read here"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            read_task_file(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_without_lm_eval_one_line_says_how_to_get_it(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # an import of it fails, as where it is not installed
    line = refusal("scripts/downstream.py", f"run={folders['gpt']}", "device=cpu", code=2)
    assert "pip install -r requirements-eval.txt" in line
