"""What train.py refuses before the first step: one table of mistakes, what the one line says, the exit code."""

from unittest import mock

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from training import ROOT, SMALL, error_line, refusal, run

from cli.composition import compose_files

MODELS = ", ".join(sorted(path.stem for path in (ROOT / "configs/model").glob("*.yaml")))
MISTAKES = {  # a mistake, what the one line must say, the exit code
    "lerning_rate=1e-3": ("unknown key 'lerning_rate': did you mean 'learning_rate'?", 2),
    "+lerning_rate=1e-3": ("unknown key 'lerning_rate': did you mean 'learning_rate'?", 2),
    "model.n_heads=3": ("unknown key 'model.n_heads': did you mean 'model.n_head'?", 2),
    "+model.n_heads=3": ("unknown key 'n_heads': did you mean 'n_head'?", 2),
    "+data.fils=3": ("unknown key 'data.fils': did you mean 'data.files'?", 2),
    "modle=gpt": ("unknown key 'modle': did you mean 'model'?", 2),
    "model=gtp": (f"model=gtp: no such choice: did you mean 'gpt'?; there are: {MODELS}", 2),
    "size=2b": ("size=2b: no such choice; there are: 0.5b, 124m, 1b, 3b, 7b, tiny", 2),
    "max_steps=many": ("max_steps: Value 'many' of type 'str' could not be converted to Integer", 2),
    "model.n_embd=1.5": ("n_embd: Value '1.5' of type 'float' could not be converted to Integer", 2),
    "max_steps=0": ("max_steps=0: must be positive", 2),
    "learning_rate=-1": ("learning_rate=-1.0: must be positive", 2),
    "learning_rate=nan": ("learning_rate=nan: must be", 2),
    "warmup_steps=5000": ("leaves nothing of max_steps=12; try warmup_steps=1", 2),
    "micro_batch_size=3": ("micro_batch_size=3 does not divide the 8 sequences", 2),
    "model.n_head=5": ("model.n_embd=32 is not divisible by model.n_head=5; n_head=4 would be", 2),
    "model.n_head=32": ("is odd; rotary embedding needs an even head size", 2),
    "device=tpu": ("device=tpu: must be one of auto, cpu, cuda", 2),
    "resume=yes": ("resume", 2),
    "run_name=../x": ("run_name='../x': use letters", 2),
    "wandb.mode=of": ("wandb.mode=of: must be one of disabled, offline, online", 2),
    "max_steps": ("max_steps", 2),
    "model.sequence_length=999999": ("tokens, but one window of the context needs 1,000,000", 3),
    "model.vocab_size=200": ("holds token id 256, but model.vocab_size=200", 3),
    "data.tokenizer=gpt2": ("made with the tokenizer bytes, but data.tokenizer=gpt2", 3),
    "data.dir=/nowhere": ("/nowhere/manifest.json: missing", 3),
    "resume=must": ("resume=must, but there is no checkpoint", 4),
    "compile=ture": ("compile=ture: must be true or false: did you mean 'true'?", 2),
    "device=gpu": ("must be one of auto, cpu, cuda: did you mean 'cuda'?", 2),
    "resume=aut": ("must be one of auto, must, never: did you mean 'auto'?", 2),
    "tensorbord=true": ("unknown key 'tensorbord': did you mean 'tensorboard'?", 2),
    "wandb=offline": ("wandb=offline: a group of keys; write wandb.mode=, wandb.project=", 2),
    "model.alpha_init=0.1": ("unknown key 'model.alpha_init' of model=gpt; model=angpt|ngpt|ngpt_ablation has it", 2),
    "model.alpha_int=0.1": ("unknown key 'model.alpha_int'", 2),
    "--max-steps=3": ("--max-steps=3: settings have no dashes: max_steps=3", 2),
    "--multirun": ("--multirun: one command is one run; `python scripts/sweep.py", 2),
    "learning_rate=1e-3,2e-3": ("learning_rate=1e-3,2e-3: a comma separates several values, but one command is one run", 2),
    "context=1024": ("there are: 1k, 4k, 8k; any number of tokens: model.sequence_length=1024", 2),
    "size=124": ("did you mean '124m'?; there are: 0.5b, 124m", 2),
    "precision=16": ("did you mean 'bf16'?", 2),
    "min_lr=1": ("unknown key 'min_lr': did you mean 'min_learning_rate'?", 2),
    "+hidden_size=64": ("unknown key 'hidden_size': did you mean 'model.n_embd'?", 2),
    "model.n_heads=2": ("unknown key 'model.n_heads': did you mean 'model.n_head'?", 2),
    "dtype=bfloat16": ("unknown key 'dtype': use precision=bf16 or fp32", 2),
    "batch_size=3": ("use micro_batch_size of one forward pass, global_batch_size of one step", 2),
    "experiment=quikstart": ("did you mean 'quickstart'?", 2),
}


def words(mistake, docs, tmp_path):
    """Return a sound command line with the mistake in it."""
    overrides = [override for override in SMALL if override.split("=")[0] != mistake.split("=")[0]]
    return [*overrides, f"data.dir={docs}", f"out_dir={tmp_path}", mistake]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_the_right_code_and_leaves_nothing(mistake, docs, tmp_path):
    says, code = MISTAKES[mistake]
    line = refusal("train.py", *words(mistake, docs, tmp_path), code=code)
    assert says in line
    assert not list(tmp_path.rglob("*.safetensors"))
    if mistake == "model.alpha_int=0.1":
        assert "alpha_init" not in line, "a key of the other arm"


def test_a_command_is_composed_once(docs, tmp_path):
    compose_files.cache_clear()  # as in a process of its own
    compose = ConfigLoaderImpl.load_configuration
    with mock.patch.object(ConfigLoaderImpl, "load_configuration", autospec=True, side_effect=compose) as composed:
        refusal("train.py", *words("resume=must", docs, tmp_path), code=MISTAKES["resume=must"][1])
    assert composed.call_count == 1, "each time is a tenth of a second of every start"


@pytest.mark.parametrize("mistake", ["lerning_rate=1e-3", "data.dir=/nowhere", "resume=must"])
def test_the_process_ends_with_that_line_and_that_code(mistake, docs, tmp_path):
    says, code = MISTAKES[mistake]
    done = run("train.py", *words(mistake, docs, tmp_path), code=code)
    assert says in error_line(done) and "step " not in done.stdout
