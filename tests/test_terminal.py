"""What a person sees: the start, the progress line and its estimate, the end, --help, the near miss, the shell's completion."""

import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import types

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from training import ROOT, SMALL, command, composed, environment, error_line, run

from cli.composition import ConfigError
from cli.entry import fail
from engine.interruption import Preempted
from engine.terminal import Terminal, TimeLeft, describe_end, describe_start, format_seconds, short


class Clock:
    """A run whose steps, validations and saves take known times; the first three steps of a job are slow."""

    STEP, EVAL, SAVE, SLOW = 0.5, 40.0, 3.0, 4.0

    def __init__(self, max_steps, eval_interval, save_interval, at=0):
        self.max_steps, self.eval_interval, self.save_interval, self.at = max_steps, eval_interval, save_interval, at

    def events(self):
        """Yield (step, train_seconds, now, is_validation) as the trainer logs them: a validation after its step, then a save."""
        now, trained = 1000.0, 700.0 * (self.at > 0)
        if self.at == 0:
            now += self.EVAL
            yield 0, trained, now, True
        for step in range(self.at + 1, self.max_steps + 1):
            took = self.STEP + self.SLOW * (step <= self.at + 3)
            trained, now = trained + took, now + took
            if step % 10 == 0 or step == self.max_steps:
                yield step, trained, now, False
            if step % self.eval_interval == 0 or step == self.max_steps:
                now += self.EVAL
                yield step, trained, now, True
            if step % self.save_interval == 0:
                now += self.SAVE


@pytest.mark.parametrize(("at", "max_steps"), [(0, 1000), (0, 1030), (400, 1000), (430, 1000)])
def test_the_estimate_counts_validations_and_is_right_after_a_resume(at, max_steps):
    clock = Clock(max_steps, 100, 50, at)
    events = list(clock.events())
    end = events[-1][2]
    config = types.SimpleNamespace(max_steps=max_steps, eval_interval=100, tokens_per_step=1000)
    # A validation of 40 s is that of 240 steps' tokens: the guess before the first one is measured.
    left = TimeLeft(config, 240 * 1000, at, events[0][1] if at else 0.0, 1000.0)
    left.last = (700.0 * (at > 0), 1000.0)
    seen = 0
    for step, trained, now, is_validation in events:
        left.note(step, trained, now, is_validation)
        if not is_validation and step > at + 20:
            seen += 1
            truth = end - now
            assert abs(left.seconds(step) - truth) < (0.1 if step < at + 200 else 0.02) * truth + clock.SAVE, (
                step,
                left.seconds(step),
                truth,
            )
    assert seen > 50


def test_a_rollback_restarts_the_estimate():
    config = types.SimpleNamespace(max_steps=100, eval_interval=1000, tokens_per_step=1)
    left = TimeLeft(config, 0, 0, 0.0, 0.0)
    assert left.seconds(0) is None
    for step in (10, 20, 30):
        left.note(step, step, step, False)
    left.restart(20, 31.0, 31.0)
    assert left.seconds(20) is None
    left.note(30, 41.0, 41.0, False)
    assert left.seconds(30) == pytest.approx(70)


def test_numbers_for_people():
    assert [short(n) for n in (0, 12, 999, 1000, 50_304, 999_600, 468_203_520, 9_035_582_198, 2.1e12)] == [
        "0",
        "12",
        "999",
        "1k",
        "50.3k",
        "1M",
        "468M",
        "9.04B",
        "2.1T",
    ]
    assert (format_seconds(59.6), format_seconds(93784)) == ("0:01:00", "26:03:04")


def test_the_start_says_what_where_and_how_long():
    config = composed("model=ngpt", "size=1b", "context=4k", "wandb.mode=offline", "tensorboard=true")
    plan = {
        "world_size": 8,
        "parameters": {"total": 1_073_053_824, "non_embedding": 944_000_000},
        "tokens_per_step": 2**21,
        "tokens": 4.2e10,
        "gradient_accumulation_steps": 16,
        "epochs": 4.6,
        "flops": 4e20,
        "flops_per_token": 10**10,
        "train_tokens": 9_035_582_198,
    }
    machine = {"device": {"type": "cuda", "name": "NVIDIA H100 80GB HBM3"}, "evaluation": {"tokens": 4_430_000}}
    text = "\n".join(describe_start(config, plan, machine, 500, peak=1e15))
    assert text.count("\n") == 5
    hours = (config.max_steps - 500) * 2**21 * 1e10 / (8e15 * 0.4) / 3600
    for part in (
        "ngpt 1b, context 4,096: 1.07B parameters",
        "8 x NVIDIA H100 80GB HBM3, ddp, bf16, compiled",
        "9.04B tokens",
        f"about {int(hours)}:",
        "W&B offline",
        "tensorboard --logdir runs",
        "at step 500",
        str(config.run_dir),
    ):
        assert part in text
    assert "about" not in "\n".join(describe_start(config, plan, machine, 0, peak=None)), "no guess without a known peak"
    assert "val 3.2000" in describe_end(config, 3600, 3.2)[0] and "compare.py" in describe_end(config, 3600, 3.2)[1]


def test_what_is_printed_can_be_pasted():
    config = composed("model=ngpt", "run_name=x", "out_dir='/my runs'")
    assert describe_end(config, 1, None)[1] == "next: python scripts/compare.py '/my runs/x' '/my runs'/OTHER"


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_moves_with_every_step_and_its_validation_is_the_last(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Screen())
    terminal = Terminal(composed("model=ngpt"), 0, 0, 0.0, keep=[].append)
    training = {"train/loss": 3.0, "train/learning_rate": 1e-3, "train/tokens_per_second": 1.0, "train/grad_norm": 1.0}
    terminal.show({"step": 10, "train_seconds": 1.0, **training})
    terminal.advance(11)
    assert terminal.bar.n == 11
    for loss in (2.5, 2.25):
        terminal.show({"step": 11, "train_seconds": 1.1, "val/loss": loss, "val/bits_per_byte": 1.0})
        assert f"val {loss:.3f}" in terminal.bar.desc and "loss 3.000" in terminal.bar.desc
    terminal.rewind(5, 1.1)
    assert terminal.bar.n == 5 and terminal.last_val is None
    terminal.close()


def test_a_stop_that_was_asked_for_is_no_error_and_ends_torchruns_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    for error, line in ((Preempted("stopped by SIGINT, saved"), "stopped by SIGINT, saved"), (ConfigError("no"), "error: no")):
        with pytest.raises(SystemExit) as ended:
            fail(error)
        assert ended.value.code == error.exit_code and capsys.readouterr().err == line + "\n"
        failure = ProcessFailure(0, 1, error.exit_code, str(tmp_path / "error.json"))
        assert str(ChildFailedError("train.py", {0: failure})).strip("=\n").endswith(f"traceback : {line}")


def in_terminal(columns, *words):
    """Run a command with a terminal for its input and output; return its exit code and what the terminal was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment())
    os.close(theirs)
    sent = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        sent += piece
    os.close(ours)
    return process.wait(), sent.decode()


@pytest.mark.slow
def test_a_terminal_shows_one_progress_line_and_a_file_lines(docs, tmp_path):
    words = [*SMALL, f"data.dir={docs}", f"out_dir={tmp_path}"]
    code, sent = in_terminal(90, *command("train.py", *words, "run_name=terminal"))
    assert code == 0
    shown = [part for part in re.split(r"[\r\n]+", sent) if "12/12 " in part and "loss" in part]
    for part in ("100%|", "eta 0:00:0", "loss ", " val ", " tok/s", " lr "):
        assert shown and part in shown[0], shown
    assert max(map(len, shown)) <= 90 and "| loss " not in sent, "the bar says it"
    assert sent.count("model  gpt tiny") == 1 and sent.count("next: python scripts/compare.py") == 1
    lines = run("train.py", *words, "run_name=file").stdout.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["model", "on", "data", "plan", "writes", "begins"]
    assert sum("| loss " in line for line in lines) == 12 and sum("| val " in line for line in lines) == 3
    assert lines[-2].startswith("done: val ") and lines[-1].startswith("next: ") and not any("\r" in line for line in lines)


def test_help_is_quick_and_explains():
    """No torch: measured by what is loaded, not by the clock of a busy machine."""
    code = "import sys, runpy; sys.argv = ['train.py', '--help']; "
    code += "runpy.run_path('train.py', run_name='__main__'); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for group in ("model", "size", "context", "data", "optimizer", "precision", "experiment"):
        names = sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))
        (lines,) = re.findall(rf"^  {group} +((?:.*\|\n)*.*)$", done.stdout.partition("Keys")[0], re.MULTILINE)
        assert [name.strip("*") for name in re.split(r" \|\s+", lines)] == names
    config = composed()
    keys = dict(re.findall(r"^  ([a-z_.]+) +(\S+) +\S", done.stdout.partition("Keys")[2], re.MULTILINE))
    assert len(keys) >= 20
    for key, value in keys.items():
        if key != "run_name":  # filled in later
            expected = getattr(
                config.data if key == "data.dir" else config.wandb if key == "wandb.mode" else config,
                key.split(".")[-1],
            )
            assert value == {None: "null", True: "true", False: "false"}.get(expected, str(expected)) or float(value) == expected, (
                key
            )
    examples = re.findall(r"train\.py ((?:[a-z_.]+=\S+ ?)+)", done.stdout)
    assert len(examples) >= 5
    for words in examples:
        composed(*words.split())
    assert max(map(len, done.stdout.splitlines())) <= 130


def test_help_has_the_values_of_this_command_line():
    text = run("train.py", "model=ngpt", "experiment=quickstart", "seed=7", "-h").stdout
    assert re.search(r"size .*tiny\*", text) and re.search(r"\btiny_ngpt\*", text)
    assert re.search(r"learning_rate +0\.006 ", text) and re.search(r"seed +7 ", text)


@pytest.mark.parametrize("script", ["prepare_owt.py", "sample.py", "scripts/evaluate.py", "scripts/compare.py"])
def test_every_entry_has_help(script):
    text = run(script, "--help").stdout
    assert "Powered by Hydra" not in text and "{" not in text.replace("${", "")
    assert re.search(r"^ +(device|num_proc|out)\b", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--cfg", "job"], "max_steps: 100000"), (["--info", "defaults"], "model/gpt"), (["--hydra-help"], "--shell-completion")],
)
def test_hydras_own_flags_go_on_working(flags, says):
    assert says in run("train.py", *flags).stdout


def test_data_that_are_not_there_name_the_command_and_the_folders_that_are(docs, tmp_path):
    line = error_line(run("train.py", *SMALL, f"data.dir={docs.parent}/dosc", f"out_dir={tmp_path}", code=3))
    assert f"run: python prepare_owt.py data=docs data.dir={docs.parent}/dosc" in line
    assert f"prepared there: {docs}" in line and f"did you mean '{docs}'?" in line


def test_variants_of_the_ablation_model_have_names_of_their_own():
    words = ["size=tiny", "data=docs"]
    variants = [
        [],
        ["model.scalar=[sqk,su]"],
        ["model.residual=slerp"],
        ["model.normalize_qk=false"],
        ["model.alpha_init=0.1"],
    ]
    names = [composed(*words, "model=ngpt_ablation", *variant).run_name for variant in variants]
    assert len(set(names)) == len(names) and "-scalar_sqk+su-" in names[1] and "-normalize_qk_false-" in names[3]
    assert composed(*words, "model=ngpt").run_name == "ngpt-tiny-1k-docs-100000steps-lr0.0015-seed1337", "as it always was"
    assert composed(*words, "model=gpt_qknorm").run_name.startswith("gpt_qknorm-tiny-")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("python train.py model=ng", {"model=ngpt", "model=ngpt_ablation"}),
        ("python train.py size=t", {"size=tiny"}),
        ("python train.py model=ngpt max_st", {"max_steps="}),
    ],
)
def test_bash_completes_groups_and_keys(typed, offered):
    """As docs/terminal.md says it: the function that Hydra installs, called as bash calls it."""
    if not shutil.which("bash"):
        pytest.skip("no bash")
    script = f"""
        eval "$(python train.py -sc install=bash)"
        COMP_LINE='{typed}' COMP_POINT={len(typed)} COMP_CWORD={len(typed.split()) - 1}
        hydra_bash_completion
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment(PATH=path), capture_output=True, text=True)
    assert set(done.stdout.split()) == offered, done.stderr
