"""Sampling: the cache against the full forward pass, the draws, and sample.py as a user runs it."""

import fcntl
import json
import math
import os
import pty
import signal
import struct
import subprocess
import termios

import pytest
import torch
from test_ablations import VARIANTS, variant
from test_models import perturbed
from training import ROOT, command, environment, refusal, run

from cli.arguments import parse
from cli.composition import ConfigError
from corpus.manifest import DataError
from engine.generate import Sampling, choose, context_start, generate, penalized
from engine.loss import NextTokenLoss
from engine.models import build_model
from engine.trained import TrainedRun, open_trained_run
from gpt.rope import RotaryTable
from sampling.columns import side_by_side, text_width, wrap
from sampling.drawing import Sample, seed_of
from sampling.prompts import read_prompt_file, read_prompts
from sampling.settings import SampleSettings, check
from sampling.show import show_samples

MODELS = ("gpt", "ngpt", *VARIANTS)
GREEDY = Sampling(temperature=0)
TOKENS = torch.randint(19, (3, 8), generator=torch.Generator().manual_seed(5))


def model_called(name, **changes):
    """A float64 model of 19 tokens and a context of 8, every parameter off its initial value."""
    return (perturbed(name, **changes) if name in ("gpt", "ngpt") else variant(name, **changes)).eval()


def logits_of(model, *arguments):
    with torch.no_grad():
        return model(*arguments) @ model.unembedding().T


# ---- the cache


@pytest.mark.parametrize("name", MODELS)
def test_reading_with_a_cache_gives_the_logits_of_the_full_forward(name):
    model = model_called(name)
    whole = logits_of(model, TOKENS)
    for pieces in ([1] * 8, [8], [3, 1, 1, 3], [1, 7], [5, 2, 1]):
        cache = model.new_cache()
        parts = torch.cat([logits_of(model, part, cache) for part in TOKENS.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)
        assert cache.length == 8
    single = model.float()
    cache = single.new_cache()
    parts = torch.cat([logits_of(single, part, cache) for part in TOKENS.split(1, dim=1)], dim=1)
    torch.testing.assert_close(parts, logits_of(single, TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_without_a_cache_the_forward_is_one_graph_and_an_empty_cache_changes_no_bit(name):
    model = model_called(name, n_layer=1)
    assert torch.equal(logits_of(model, TOKENS), logits_of(model, TOKENS, model.new_cache()))
    torch._dynamo.reset()
    compiled = torch.compile(NextTokenLoss(model), backend="eager", fullgraph=True)
    assert torch.equal(compiled(TOKENS), NextTokenLoss(model)(TOKENS))


def test_a_cache_is_filled_cleared_and_repeated_and_refuses_what_does_not_fit():
    model = model_called("ngpt")
    cache = model.new_cache()
    logits_of(model, TOKENS[:1, :5], cache)
    storage = cache[0].keys
    cache.repeat(3)
    continued = logits_of(model, TOKENS[:, 5:], cache)
    whole = logits_of(model, torch.cat((TOKENS[:1, :5].expand(3, -1), TOKENS[:, 5:]), dim=1))
    torch.testing.assert_close(continued, whole[:, 5:], rtol=1e-9, atol=1e-9)
    assert cache[1].keys.shape == cache[1].values.shape == (3, 2, 8, 6) and storage.shape == (1, 2, 8, 6)
    with pytest.raises(ValueError, match="9 positions in a cache for 8"):
        model(TOKENS[:, :1], cache)
    kept = cache[0].keys
    cache.clear()
    assert cache.length == 0
    torch.testing.assert_close(logits_of(model, TOKENS, cache), logits_of(model, TOKENS))
    assert cache[0].keys is kept, "allocated again"


@pytest.mark.parametrize("name", ["gpt", "ngpt"])
def test_under_autocast_the_cache_is_bf16_and_the_logits_those_of_the_full_forward(name):
    torch.manual_seed(0)
    model = build_model({"name": name, "vocab_size": 19, "sequence_length": 8, "n_layer": 2, "n_head": 2, "n_embd": 16})
    cache = model.new_cache()
    with torch.autocast("cpu", torch.bfloat16):
        parts = torch.cat([logits_of(model, part, cache) for part in TOKENS.split(1, dim=1)], dim=1)
        whole = logits_of(model, TOKENS)
    assert cache[0].keys.dtype == cache[0].values.dtype == torch.bfloat16
    torch.testing.assert_close(parts.float(), whole.float(), rtol=0.05, atol=0.02 * whole.abs().max().item())


def test_rotary_positions_may_start_anywhere():
    table = RotaryTable(head_dim=6, sequence_length=8, base=10000.0)
    assert torch.equal(table(3, start=4), table(8)[:, 4:7])
    assert torch.equal(table(5, start=6), RotaryTable(head_dim=6, sequence_length=11, base=10000.0)(11)[:, 6:])
    assert table(11).untyped_storage().data_ptr() == table(9).untyped_storage().data_ptr(), "computed once, then kept"
    assert not list(table.state_dict()), "no checkpoint carries it"


# ---- generation


def test_the_window_moves_on_by_half_of_it():
    """The docs' table: how many tokens are read before each one."""
    read = [length - context_start(length, 8) for length in range(1, 21)]
    assert read == [1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8]
    assert [length - context_start(length, 7) for length in range(5, 17)] == [5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4]
    for window in range(1, 40):
        for length in range(1, 200):
            seen = length - context_start(length, window)
            assert seen == length if length <= window else window // 2 < seen <= window


def seeded(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def full_forward(model, prompt, max_new_tokens, temperature, n_tokens=19):
    """Generate without a cache: every token from the whole of its context."""
    tokens, generators, made = prompt, seeded(len(prompt)), []
    for _ in range(max_new_tokens):
        seen = tokens[:, context_start(tokens.shape[1], model.config.sequence_length) :]
        logits = logits_of(model, seen)[:, -1, :n_tokens].float()
        made.append(choose(logits, Sampling(temperature), generators))
        tokens = torch.cat((tokens, made[-1][:, None]), dim=1)
    return torch.stack(made, dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_generation_is_token_for_token_that_of_the_full_forward_also_past_the_window(name):
    model = model_called(name)
    for length in (1, 5, 8, 9, 30):  # within the window, filling it, beyond it
        prompt = torch.randint(19, (3, length), generator=torch.Generator().manual_seed(length))
        for temperature in (0, 1.5):
            stream = generate(model, prompt, 17, n_tokens=19, sampling=Sampling(temperature), generators=seeded(3))
            made = torch.stack(list(stream), dim=1)
            assert torch.equal(made, full_forward(model, prompt, 17, temperature))  # two windows and a token
    assert len(made.unique()) > 5, "it wrote nothing that could have differed"


@pytest.mark.parametrize("context", [1, 2, 3, 7])
def test_generation_in_the_smallest_windows(context):
    model = perturbed("ngpt", sequence_length=context).eval()
    made = torch.stack(list(generate(model, TOKENS[:, :2], 20, n_tokens=19, sampling=GREEDY)), dim=1)
    assert torch.equal(made, full_forward(model, TOKENS[:, :2], 20, 0))


def test_a_text_written_in_two_goes_is_that_written_in_one():
    model = model_called("gpt")

    def greedy(prompt, count):
        return torch.stack(list(generate(model, prompt, count, n_tokens=19, sampling=GREEDY)), dim=1)

    once = greedy(TOKENS[:, :3], 30)
    for stop in (4, 5, 6, 17):
        assert torch.equal(greedy(torch.cat((TOKENS[:, :3], once[:, :stop]), dim=1), 30 - stop), once[:, stop:])


def test_one_prompt_is_read_once_and_continued_once_per_generator():
    model, shapes = model_called("ngpt"), []
    model.register_forward_pre_hook(lambda _model, arguments: shapes.append(tuple(arguments[0].shape)))
    made = torch.stack(list(generate(model, TOKENS[:1, :4], 7, n_tokens=19, generators=seeded(3))), dim=1)
    assert shapes == [(1, 4), (3, 1), (3, 1), (3, 1), (3, 1), (3, 5), (3, 1)]
    assert torch.equal(made, full_forward(model, TOKENS[:1, :4].expand(3, -1), 7, 1.0))
    assert len({tuple(row) for row in made.tolist()}) == 3


def test_a_row_that_has_ended_repeats_its_end_and_all_ended_is_the_end():
    model, end = model_called("gpt"), 3
    free = torch.stack(list(generate(model, TOKENS, 400, n_tokens=6, generators=seeded(3))), dim=1).tolist()
    made = torch.stack(list(generate(model, TOKENS, 400, n_tokens=6, generators=seeded(3), end_token=end)), dim=1)
    lengths = [row.index(end) for row in free]
    assert len(set(lengths)) > 1 and made.shape == (3, max(lengths) + 1)
    for row, expected, length in zip(made.tolist(), free, lengths, strict=True):
        assert row[: length + 1] == expected[: length + 1] and set(row[length:]) == {end}


def test_padding_of_the_vocabulary_is_never_drawn():
    model = model_called("gpt")
    with torch.no_grad():
        model.lm_head.weight[15:] = 10 * model.lm_head.weight[:4]  # would always win
    made = torch.stack(list(generate(model, TOKENS, 12, n_tokens=15, sampling=GREEDY)), dim=1)
    assert made.max() < 15 and torch.equal(made, full_forward(model, TOKENS, 12, 0, n_tokens=15))


def test_choosing_a_token():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    generators = seeded(1)

    def drawn(**options):
        return [choose(logits, Sampling(**options), generators).item() for _ in range(2000)]

    assert set(drawn(temperature=0)) == {0} and set(drawn(top_k=2)) == {0, 1} and set(drawn(top_k=9)) == {0, 1, 2, 3}
    assert set(drawn(top_p=0.5)) == {0} and set(drawn(top_p=0.51)) == {0, 1} and set(drawn(top_p=0.9)) == {0, 1, 2}
    assert set(drawn(temperature=1e-300)) == {0}
    assert abs(drawn().count(0) / 2000 - 0.5) < 0.05
    assert abs(drawn(temperature=0.5).count(0) / 2000 - 0.25 / (0.25 + 0.09 + 0.0225 + 0.0025)) < 0.05


LOGITS = [2.0, 1.5, 1.4, 0.3, -0.2, -0.2, -1.0, -4.0]
SEEN = [1, 6, 6]


def theory(temperature=1.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0):
    """The probabilities of LOGITS after SEEN, from the papers' formulas, token by token in double precision."""
    z = [value / repetition_penalty if value > 0 else value * repetition_penalty for value in LOGITS]
    z = [z[i] if i in SEEN else LOGITS[i] for i in range(8)]
    p = [math.exp(value / temperature) for value in z]
    if top_k:
        p = [value if sum(other > value for other in p) < top_k else 0 for value in p]
    p = [value / sum(p) for value in p]
    if top_p:
        kept, total = set(), 0.0
        for i in sorted(range(8), key=lambda i: -p[i]):
            if total < top_p:
                kept.add(i)
            total += p[i]
        p = [value if i in kept else 0 for i, value in enumerate(p)]
    if min_p:
        p = [value if value >= min_p * max(p) else 0 for value in p]
    return [value / sum(p) for value in p]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"top_p": 0.8},
        {"min_p": 0.3},
        {"min_p": 1.0},
        {"repetition_penalty": 1.7},
        {"temperature": 0.7, "top_k": 6, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 0.8},
    ],
    ids=str,
)
def test_the_distribution_is_that_of_theory(options):
    """Exactly, and by what is drawn: Pearson's chi-square stays below its 99.9% quantile, 24.3 for 7 degrees of freedom."""
    expected = torch.tensor(theory(**options))
    logits, seen, draws = torch.tensor([LOGITS]), torch.tensor([SEEN]), 20_000
    sampling = Sampling(**options)
    found = sampling.distribution(penalized(logits, seen, sampling.repetition_penalty))[0]
    torch.testing.assert_close(found / found.sum(), expected, rtol=1e-5, atol=1e-7)
    drawn = choose(logits.expand(draws, -1), sampling, None, seen.expand(draws, -1))
    counts = torch.bincount(drawn, minlength=8).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    wanted = draws * expected[possible].double()
    assert ((counts[possible] - wanted) ** 2 / wanted).sum() < 24.3


def test_a_repetition_penalty_counts_for_the_most_probable_token_too():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    assert choose(logits, Sampling(0.0, repetition_penalty=1.2), None, torch.tensor([[0]])).item() == 1
    assert choose(logits, Sampling(0.0), None, torch.tensor([[0]])).item() == 0
    model = model_called("gpt")
    plain, penalty = (
        torch.stack(list(generate(model, TOKENS, 30, n_tokens=19, sampling=Sampling(0.0, repetition_penalty=value))), dim=1)
        for value in (1.0, 50.0)
    )
    assert len(penalty.unique()) > len(plain.unique())


# ---- what is drawn from a run, and how it is shown


@pytest.fixture(scope="module")
def runs(trained):
    return [open_trained_run(trained / arm) for arm in ("gpt", "ngpt")]


def settings(*overrides: str, **raw) -> SampleSettings:
    given = overrides if any(o.startswith("max_new_tokens=") for o in overrides) else ("max_new_tokens=40", *overrides)
    config, _ = parse(SampleSettings, ["A", *given], ("runs",))
    for key, value in raw.items():
        setattr(config, key, value)
    check(config)
    return config


def shown(capsys, runs, prompts, *overrides: str) -> str:
    capsys.readouterr()
    show_samples(runs, prompts, settings(*overrides))
    return capsys.readouterr().out


def records(capsys, runs, prompts, *overrides: str) -> list[dict]:
    return [json.loads(line) for line in shown(capsys, runs, prompts, "json=true", *overrides).splitlines()]


def test_a_sample_does_not_depend_on_how_many_are_drawn_beside_it(runs, capsys):
    for one_run in runs:
        of_8 = [r["completion"] for r in records(capsys, [one_run], ["The class"], "num_samples=8")]
        assert len(set(of_8)) == 8
        for overrides in (("num_samples=5",), ("num_samples=1",), ("num_samples=8", "batch_size=3")):
            some = records(capsys, [one_run], ["The class"], *overrides)
            assert [r["completion"] for r in some] == of_8[: len(some)], overrides
        assert [r["completion"] for r in records(capsys, [one_run], ["def", "The class"])][1] == of_8[0]
        assert records(capsys, [one_run], ["The class"], "seed=1")[0]["completion"] != of_8[0]
    assert seed_of(1, 2) != seed_of(2, 1) and seed_of(-1, 1) != seed_of(10**30, 1)


def test_json_says_what_was_drawn_and_with_what(runs, capsys):
    lines = records(capsys, runs, ["", "Zeile\nä 🙂"], "num_samples=2", "top_k=9", "temperature=0.5", "seed=7")
    assert [(r["run"], r["prompt"], r["sample"]) for r in lines] == [
        (str(one_run.folder), prompt, sample) for prompt in ("", "Zeile\nä 🙂") for one_run in runs for sample in (1, 2)
    ]
    assert set(lines[0]) == {
        "run",
        "model",
        "step",
        "prompt",
        "completion",
        "prompt_tokens",
        "completion_tokens",
        "seed",
        "sample",
        "finish_reason",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "stop",
    }
    assert [r["model"] for r in lines[:4]] == ["gpt", "gpt", "ngpt", "ngpt"]
    first, last = lines[0], lines[-1]
    assert (first["step"], first["seed"], first["top_k"], first["top_p"], first["temperature"]) == (12, 7, 9, None, 0.5)
    assert first["prompt_tokens"] == 1, "the end-of-text token, after which a text begins"
    assert last["prompt_tokens"] == len("Zeile\nä 🙂".encode())
    assert {(r["finish_reason"], r["completion_tokens"]) for r in lines} == {("length", 40)}


class Scripted:
    """Stand for generate: the rows are written before; 256 ends one."""

    def __init__(self, monkeypatch, *rows: bytes):
        self.rows = [[*row, 256] for row in rows]
        monkeypatch.setattr("sampling.drawing.generate", self)

    def __call__(self, _model, _prompt, max_new_tokens, **options):
        assert len(options["generators"]) == len(self.rows)
        for step in range(min(max_new_tokens, max(map(len, self.rows)))):
            yield torch.tensor([row[min(step, len(row) - 1)] for row in self.rows])


def written(monkeypatch, one_run: TrainedRun, *overrides: str) -> list[str]:
    """Return the pieces that standard output is given."""
    pieces: list[str] = []
    monkeypatch.setattr("sys.stdout.write", pieces.append)
    show_samples([one_run], ["> "], settings(*overrides))
    monkeypatch.undo()
    return [piece for piece in pieces if piece]


def test_a_single_sample_is_streamed_by_whole_characters(monkeypatch, runs):
    text = "aé漢🙂\nz"
    Scripted(monkeypatch, text.encode())
    assert written(monkeypatch, runs[0]) == ["> ", *text, "\n"]
    Scripted(monkeypatch, "a🙂".encode()[:-1], b"x\xffy")
    pieces = written(monkeypatch, runs[0], "num_samples=2")
    assert "".join(pieces) == "--- sample 1\n> a\ufffd\n--- sample 2\n> x\ufffdy\n"


def test_several_samples_are_written_in_order_and_the_first_unfinished_one_is_streamed(monkeypatch, runs):
    Scripted(monkeypatch, b"abcd", b"x", b"123456")
    assert written(monkeypatch, runs[0], "num_samples=3") == [
        "--- sample 1\n> ",
        "a",
        "b",
        "c",
        "d",
        "\n",
        "--- sample 2\n> ",
        "x",
        "\n",
        "--- sample 3\n> ",
        "12345",
        "6",
        "\n",
    ]


def test_json_and_the_end_of_text(monkeypatch, runs, capsys):
    Scripted(monkeypatch, b"abcd", b"", b"1234567")
    lines = records(capsys, runs[:1], ["p"], "num_samples=3", "max_new_tokens=5")
    assert [(r["completion"], r["completion_tokens"], r["finish_reason"]) for r in lines] == [
        ("abcd", 4, "end_of_text"),
        ("", 0, "end_of_text"),
        ("12345", 5, "length"),
    ]


def test_a_text_can_stop_a_sample_and_no_part_of_it_is_written(monkeypatch, runs, capsys):
    Scripted(monkeypatch, b"one\nEND two", b"EENEND", b"a\n\nb", b"EN")
    stops = 'stop=["END", "\\n\\n"]'
    lines = records(capsys, runs[:1], ["p"], "num_samples=4", stops)
    assert [(r["completion"], r["completion_tokens"], r["finish_reason"]) for r in lines] == [
        ("one\n", 7, "stop"),
        ("EEN", 6, "stop"),
        ("a", 3, "stop"),
        ("EN", 2, "end_of_text"),
    ]
    assert lines[0]["stop"] == ["END", "\n\n"]
    Scripted(monkeypatch, b"aENbEN")
    pieces = written(monkeypatch, runs[0], "stop=END")
    assert pieces == ["> ", "a", "ENb", "EN", "\n"], "what may become END is held back until it cannot"
    Scripted(monkeypatch, b"a, b")
    assert written(monkeypatch, runs[0], "stop=, ") == ["> ", "a", "\n"]
    Scripted(monkeypatch, b"abc" + b"x" * 100)
    assert records(capsys, runs[:1], ["p"], "stop=c", "max_new_tokens=90")[0]["completion_tokens"] == 3


def test_several_prompts_and_one_longer_than_the_context(runs, capsys):
    long = "x" * 33
    show_samples(runs[:1], ["one", long], settings("max_new_tokens=2"))
    done = capsys.readouterr()
    assert done.out.startswith("--- prompt 1\none") and f"\n--- prompt 2\n{long}" in done.out
    note, speed = done.err.splitlines()
    assert "of the prompt's 33 tokens" in note and "the last 17; its context is 32" in note
    # A prefill ends with a first token, so 2 x 1 are left; and what is not read is not counted.
    assert "prefill 20 tokens in " in speed and "decode 2 tokens in " in speed and "tokens/s" in speed


def test_compare_shows_the_same_samples_in_columns_or_below_each_other(runs, capsys, monkeypatch):
    single = [r["completion"] for one_run in runs for r in records(capsys, [one_run], ["The é"], "num_samples=2")]
    titles = [one_run.title for one_run in runs]
    monkeypatch.delenv("COLUMNS", raising=False)
    below = shown(capsys, runs, ["The é"], "num_samples=2")
    expected = [f"--- {titles[arm]}, sample {sample + 1}\nThe é{single[2 * arm + sample]}\n" for sample in (0, 1) for arm in (0, 1)]
    assert below == "".join(expected[:2]) + "\n" + "".join(expected[2:]) + "\n"
    monkeypatch.setenv("COLUMNS", "40")
    assert shown(capsys, runs, ["The é"], "num_samples=2") == below, "too narrow"
    monkeypatch.setenv("COLUMNS", "71")
    beside = shown(capsys, runs, ["The é"], "num_samples=2").splitlines()
    assert beside[:2] == ["--- sample 1", "The é"] and beside.count("-" * 34 + "-+-" + "-" * 34) == 2
    assert all(text_width(line) <= 71 for line in beside)
    assert side_by_side(titles, single[::2], 71) in "\n".join(beside)


def test_columns_stay_straight_with_wide_characters():
    texts = ["漢字かな交じり文はスペースがない。" * 3, "e\u0301tude 🙂🙂 na\u0308ive\tx\x1b[2J\x07 " * 4 + "w" * 40]
    block = side_by_side(["A", "B" * 50], texts, 63)
    lines = block.splitlines()
    bars = {text_width(line[: line.index("|")]) for line in lines if "|" in line}
    assert bars == {31} and all(text_width(line) <= 63 for line in lines) and "\x1b" not in block and "\x07" not in block
    left = "".join(line.split(" |")[0].strip() for line in lines[3:])
    assert left == texts[0]
    assert side_by_side(["A", "B"], ["", ""], 50) is None and side_by_side(["A", "B"], ["", ""], 51)


def test_wrapping():
    assert wrap("one two three", 7) == ["one two", "three"] and wrap("", 5) == [""]
    assert wrap("a\n\n b", 5) == ["a", "", " b"] and wrap("abcdefgh ij", 4) == ["abcd", "efgh", "ij"]
    assert wrap("漢字漢", 5) == ["漢字", "漢"] and wrap("     abcdef", 5) == ["     ", "abcde", "f"]
    assert wrap("ae\u0301i", 2) == ["ae\u0301", "i"] and text_width("ae\u0301漢\u200d") == 4


def test_a_sample_that_ends_inside_a_character():
    sample = Sample(1)
    for byte in "é".encode()[:1]:
        sample.add(bytes([byte]))
    assert sample.text == ""
    sample.finish("length")
    assert (sample.text, sample.n_tokens, sample.finish_reason) == ("\ufffd", 1, "length")


# ---- prompts and refusals


def test_prompt_files(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes('\ufeffOnce, "upon" {a} time \r\n\n  \nzweite: ä\u2028x\x0cy'.encode())
    assert read_prompts(None, str(file)) == ['Once, "upon" {a} time ', "zweite: ä\u2028x\x0cy"]
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "two\\nlines", "id": 3}\n\n{"prompt": ""}\n')
    assert read_prompt_file(file) == ["two\nlines", ""]
    assert read_prompts("a\udcffb", None) == ["a\ufffdb"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.txt", None, "No such file"),
        ("a.txt", b"", "no prompt"),
        ("a.txt", b" \n\r\n", "no prompt"),
        ("a.txt", b"abc\xff", r"not UTF-8 text \(byte 3\)"),
        ("a.txt", b"a\0b", "zero bytes"),
        ("a.jsonl", b"\n{", "line 2: not JSON"),
        ("a.jsonl", b'"x"', "line 1: not a JSON object"),
        ("a.jsonl", b'{"prompt": 3}', '"prompt" that is text'),
        ("a.jsonl", b"[" * 100_000, "not JSON"),
        (".", None, "directory"),
    ],
)
def test_bad_prompt_files_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as refusal:
        read_prompt_file(tmp_path / name)
    assert "\n" not in str(refusal.value) and "prompt_file=" in str(refusal.value)


def test_a_file_too_large_is_not_read(tmp_path):
    with open(tmp_path / "train.bin", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="more than 64,000,000 bytes"):
        read_prompt_file(tmp_path / "train.bin")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"num_samples": -1}, "num_samples=-1"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"temperature": -0.1}, "temperature"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"stop": ["a", ""]}, "stop: an empty text"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"device": "tpu"}, "device=tpu"),
        ({"prompt": "a", "prompt_file": "b"}, "both"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_which_runs_are_sampled():
    for arguments in (["runs/A", "runs/B"], ["runs=runs/A, runs/B"], ["compare=runs/A,runs/B"], ["run=runs/A", "runs/B"]):
        config, hints = parse(SampleSettings, arguments, ("runs",))
        assert config.runs == ["runs/A", "runs/B"] and bool(hints) == (arguments[0][:7] == "compare")
    with pytest.raises(ConfigError, match="no run folder"):
        parse(SampleSettings, [], ("runs",))
    with pytest.raises(ConfigError, match="a is given twice"):
        settings(runs=["a", "b", "a"])


# ---- the program


def test_sampling_from_the_command_line(trained, runs, capsys):
    options = ["max_new_tokens=20", "temperature=0.9", "top_k=50", "top_p=0.95"]
    done = run("sample.py", f"run={trained}/ngpt", *options, "prompt=The module's, or: {a}")
    assert done.stdout == shown(capsys, runs[1:], ["The module's, or: {a}"], *options)
    assert done.stdout.startswith("The module's, or: {a}") and done.stdout.endswith("\n")
    (line,) = done.stderr.splitlines()
    assert "ngpt (step 12): prefill 21 tokens in" in line and "decode 19 tokens in" in line
    twice = run("sample.py", f"run={trained}/ngpt", *options[:1], "num_samples=2", "temperature=0", input="from stdin")
    assert twice.stdout.count("from stdin") == 2


def test_comparing_from_the_command_line(trained, tmp_path):
    (tmp_path / "a, b=c.txt").write_text("class Path:\nThe\n")
    done = run(
        "sample.py",
        f"compare={trained}/gpt,{trained}/ngpt",
        f"prompt_file={tmp_path}/a, b=c.txt",
        "json=true",
        "max_new_tokens=5",
        "checkpoint=6",
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["model"], r["step"], r["prompt"]) for r in lines] == [
        (arm, 6, prompt) for prompt in ("class Path:", "The") for arm in ("gpt", "ngpt")
    ]
    assert len(done.stderr.splitlines()) == 3 and done.stderr.splitlines()[2].startswith("note: compare=A,B is now written A B")


def test_in_a_terminal_runs_stand_side_by_side(trained):
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
    kept = {key: value for key, value in environment().items() if key != "COLUMNS"}
    arguments = command("sample.py", f"compare={trained}/gpt,{trained}/ngpt", "prompt=Über", "max_new_tokens=30")
    with subprocess.Popen(arguments, cwd=ROOT, env=kept, stdout=terminal, stderr=subprocess.DEVNULL) as process:
        os.close(terminal)
        output = b""
        while True:
            try:
                piece = os.read(controller, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            output += piece
    os.close(controller)
    assert process.returncode == 0
    lines = output.decode().splitlines()
    assert lines[0] == "Über" and "-" * 43 + "-+-" + "-" * 43 in lines and all(text_width(line) <= 90 for line in lines)


@pytest.mark.parametrize(
    "overrides, code, message",
    [
        (["run={}/ngpt", "checkpoint=5", "prompt=a"], 4, "no checkpoint of step 5; there are: 12, 6"),
        (["compare={0}/ngpt,{0}/none", "prompt=a"], 2, "none: there is no such run folder"),
        (["run={}/ngpt", "prompt_file={}/none.txt"], 3, "No such file"),
    ],
)
def test_bad_commands_end_with_one_line_and_a_code(trained, overrides, code, message):
    assert message in refusal("sample.py", *(part.format(trained) for part in overrides), code=code)


def test_a_closed_pipe_is_silent(trained):
    arguments = command("sample.py", f"run={trained}/gpt", "prompt=abc", "max_new_tokens=3000", "num_samples=50")
    with subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert len(process.stdout.read(30)) == 30
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 128 + signal.SIGPIPE


def test_ctrl_c_ends_quietly(trained):
    arguments = command("sample.py", f"run={trained}/gpt", "prompt=abc", "num_samples=10000", "batch_size=1")
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "--- sample 1\n"
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "" and rest.endswith("\n")
