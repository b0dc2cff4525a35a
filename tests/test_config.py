"""Every shipped configuration, and every mistake a user makes, through the real command line."""

import json
import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from training import ROOT, SMALL, composed, error_line, run

from cli.composition import CONFIG_DIR, ConfigError, compose_words, to_dataclass
from engine.checks import check_batch
from engine.config import Config, difference
from engine.config_file import load_config, save_config
from engine.models import build_model

EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "configs" / group).glob("*.yaml"))


# One choice of every group at a time, each choice at least once; the experiments choose for themselves.
GROUPS = [[f"{group}={name}" for name in choices(group)] for group in ("size", "context", "data", "precision")]
CHOICES = [[group[index % len(group)] for group in GROUPS] for index in range(max(map(len, GROUPS)))]
CHOICES += [[f"experiment={name}"] for name in EXPERIMENTS]


@pytest.mark.parametrize("model", ["gpt", "ngpt"])
@pytest.mark.parametrize("chosen", CHOICES, ids=" ".join)
def test_every_shipped_choice_composes_validates_and_builds(model, chosen):
    config = composed(f"model={model}", *chosen)
    assert build_model(config.model | {"n_layer": 1}, device="meta").config.n_embd == config.model["n_embd"]
    assert config.model["name"] == model
    check_batch(config, world_size=1 if config.size in ("tiny", "small") else 8)
    assert (config.weight_decay > 0) == (model != "ngpt")
    if model == "ngpt" and config.size != "small":  # the ladder of docs/results/small gives every arm the same warmup
        assert config.warmup_steps == 0


def test_the_paper_experiments_are_there_and_say_command_and_expectation():
    assert (
        sorted(["quickstart", "small", "small_1k", *(f"paper_{s}_{c}" for s in ("0.5b", "1b") for c in ("1k", "4k", "8k"))])
        == EXPERIMENTS
    )
    for name in EXPERIMENTS:
        package, command, expectation = (ROOT / f"configs/experiment/{name}.yaml").read_text().splitlines()[:3]
        assert package == "# @package _global_" and f"train.py experiment={name} " in command and len(expectation) > 40
    config = composed("experiment=paper_1b_4k", "model=ngpt")
    assert (config.model["n_layer"], config.model["sequence_length"], config.max_steps) == (36, 4096, 20000)
    assert composed("context=4k").tokens_per_step == 2_097_152  # facts of the paper: 512 sequences


def test_the_command_line_beats_the_experiment():
    config = composed("experiment=quickstart", "model=ngpt", "learning_rate=1e-3", "model.sz_init=2", "max_steps=7")
    assert (config.learning_rate, config.model["sz_init"], config.max_steps) == (1e-3, 2.0, 7)


@pytest.mark.parametrize(
    "overrides",
    [
        SMALL,
        ["experiment=quickstart", "model=ngpt", "learning_rate=1e-3", "model.sz_init=2", "data.files=[a.txt,'b c.txt']"],
        ["size=0.5b", "context=8k", "model=ngpt_ablation", "model.fixed=[sz]", "keep_every=null", "base={n_embd: 64}"],
        ["seed=1", "seed=2", "model=ngpt", "model.alpha_init=0.1", "model.alpha_init=0.2"],
        ["out_dir='a b,c=d'", 'run_name="it\'s"', "wandb.tags=[x,y]", "max_steps=1e5"],
        ["learning_rate=2e-3", "min_learning_rate=${learning_rate}"],
        ["+model.norm_eps=1e-5", "model=ngpt", "~model.norm_eps"],
        ["++seed=7", "rate_multiplier={scales: 4.0}", "wandb.entity=", "data=docs", "data.dir=x"],
    ],
    ids=["small", "quickstart", "ablation", "twice", "quotes", "interpolation", "added", "forced"],
)
def test_a_command_composes_as_hydra_would(overrides):
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        whole = to_dataclass(compose("train", [*overrides]), Config)
    for _ in range(2):  # anew, and with the choice of files known
        assert to_dataclass(compose_words("train", overrides), Config) == whole


@pytest.mark.parametrize(
    "word",
    [
        "lerning_rate=1",
        "model.alpha_int=1",
        "model.alpha_init.x=1",
        "seed=1,2",
        "seed=range(3)",
        "seed=[",
        "seed",
        "+seed=1",
        "a-b=1",
    ],
)
def test_what_hydra_refuses_is_refused_in_its_words(word):
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"), pytest.raises(HydraException) as wanted:
        compose("train", ["model=ngpt", word])
    with pytest.raises(HydraException) as found:
        compose_words("train", ["model=ngpt", word])
    assert (type(found.value), str(found.value)) == (type(wanted.value), str(wanted.value))


def test_two_configurations_share_nothing():
    first, second = composed("model=ngpt"), composed("model=ngpt")
    first.keep_steps.append(5)
    first.model["n_embd"] = 7
    first.rate_multiplier.output = 9.0
    assert composed("model=ngpt") == second and second.keep_steps == []


def test_every_data_choice_has_the_same_keys():
    keys = {name: set(vars(composed(f"data={name}").data)) for name in choices("data")}
    assert len({frozenset(k) for k in keys.values()}) == 1


def test_a_saved_configuration_comes_back_whole(tmp_path):
    config = composed("experiment=quickstart", "model=ngpt")
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert difference(config, composed("experiment=quickstart", "model=ngpt", "eval_interval=7", "device=cpu")) == []
    changed = difference(config, composed("experiment=quickstart", "model=ngpt", "beta2=0.9", "model.alpha_init=0.1"))
    assert changed == [
        "beta2: 0.95 -> 0.9",
        "model.alpha_init: 0.25 -> 0.1",
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "model: ${oc.env:HOME}", "a: !!python/object:os.system x", "\x00", "model: {name: gpt}"]
)
def test_a_damaged_or_hostile_configuration_is_refused(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="config.yaml"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.slow
@pytest.mark.distributed
def test_mistakes_end_every_rank(docs, tmp_path):
    for mistake, says in {
        "global_batch_size=9": "does not divide over 2 ranks; 8 or 10 would",
        "model.vocab_size=9": "holds token id",
    }.items():
        done = run(
            "train.py",
            *SMALL,
            f"data.dir={docs}",
            f"out_dir={tmp_path}",
            "micro_batch_size=2",
            mistake,
            ranks=2,
            code=1,
        )
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]  # torchrun's summary has it once more
        assert len(errors) == 1 and says in errors[0]


@pytest.mark.slow
def test_a_run_is_not_continued_with_other_settings_or_data(docs, tmp_path):
    base = [*SMALL, f"data.dir={docs}", f"out_dir={tmp_path}", "run_name=x"]
    run("train.py", *base)
    done = run("train.py", *base, "model.n_embd=64", "learning_rate=0.02", code=2)
    assert "(learning_rate: 0.01 -> 0.02; model.n_embd: 32 -> 64)" in error_line(done)
    environment = tmp_path / "x/environment.json"
    value = json.loads(environment.read_text())
    value["data"]["digest"] = "0" * 64
    environment.write_text(json.dumps(value))
    assert "was trained on other data" in error_line(run("train.py", *base, code=3))
    run("train.py", *base, "resume=never", "learning_rate=0.02")
    assert (tmp_path / "x.replaced-1/checkpoints/step-00000012").is_dir()


def test_dry_run_plans_without_data_or_memory(tmp_path):
    done = run(
        "train.py",
        "model=ngpt",
        "size=1b",
        "context=4k",
        "dry_run=true",
        f"data.dir={tmp_path}/none",
        f"out_dir={tmp_path}",
    )
    plan = json.loads(done.stdout)
    assert plan["parameters"]["total"] == 1_073_053_824 and plan["tokens_per_step"] == 2_097_152
    assert plan["train_tokens"] == 9_035_582_198 and 4300 < plan["steps_per_epoch"] < 4310
    # 6 * matrices + 12 * layers * context * width, by hand
    assert plan["flops_per_token"] == 6 * (36 * 16 * 1280**2 + 50304 * 1280) + 12 * 36 * 4096 * 1280
    assert not list(tmp_path.iterdir())


def test_help_lists_groups_and_keys():
    text = run("train.py", "--help").stdout
    assert re.search(r"size +.*0\.5b.*1b", text) and "learning_rate" in text
