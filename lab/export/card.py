"""The model card of an export: what was trained, on what, how well it does, and how to load it."""

from pathlib import Path

import torch
from torch import nn

from corpus.tokenizer import Tokenizer
from engine.accounting import count_parameters
from engine.config import Config
from runfolder.layout import ENVIRONMENT
from runfolder.metrics import read_records, select_validations
from runfolder.status import read_json

ARM_TEXT = {
    "gpt": "GPT baseline (pre-norm RMSNorm, RoPE, SwiGLU, untied embeddings) in the layout of `LlamaForCausalLM`",
    "ngpt": "nGPT, the normalized Transformer ([arXiv 2410.01131](https://arxiv.org/abs/2410.01131))",
}


def model_card(run: Path, step: int, config: Config, model: nn.Module, tokenizer: Tokenizer, dtype: torch.dtype) -> str:
    """Return README.md: the run's facts as they stand in its folder."""
    arm, parameters = config.model["name"], count_parameters(model)
    recorded = read_json(run / ENVIRONMENT) or {}
    data = found if isinstance(found := recorded.get("data"), dict) else {}
    facts = {
        "arm": ARM_TEXT[arm],
        "size": f"{model.config.n_layer} layers, {model.config.n_head} heads, width {model.config.n_embd}, "
        f"context {model.config.sequence_length:,}",
        "parameters": f"{parameters['total']:,} ({parameters['non_embedding']:,} without embeddings), as trained",
        "run": f"`{config.run_name}`, step {step:,} of {config.max_steps:,}",
        "training tokens": f"{step * config.tokens_per_step:,}",
        "data": f"{config.data.name} (digest {str(data.get('digest'))[:12]})",
        "tokenizer": f"{tokenizer.name}, {tokenizer.n_vocab:,} tokens (the model was trained with "
        f"{model.config.vocab_size:,} outputs; those that stand for no token are left out)",
        "precision": f"trained in {config.precision.name}; these weights are {str(dtype).removeprefix('torch.')}",
        "optimizer": f"Adam, peak learning rate {config.learning_rate:g}, weight decay {config.weight_decay:g}, "
        f"{config.warmup_steps:,} warmup steps, {config.global_batch_size} sequences a step, seed {config.seed}",
        **validation(run, step),
        "code": f"commit {recorded.get('commit') or 'unknown'}",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    remote = ", trust_remote_code=True" if arm == "ngpt" else ""
    note = (
        "`modeling_ngpt.py` and `configuration_ngpt.py` in this folder are the model; they import torch and transformers alone.\n"
        if arm == "ngpt"
        else "Nothing in this folder is code.\n"
    )
    return CARD.format(name=config.run_name, rows=rows, remote=remote, note=note)


def validation(run: Path, step: int) -> dict[str, str]:
    """Return the validation that training recorded at this step, nothing where there is none."""
    found = select_validations(read_records(run)).get(step, {})
    loss, bits = (found.get(key) for key in ("val/loss", "val/bits_per_byte"))
    if not isinstance(loss, float) or not isinstance(bits, float):
        return {}
    return {"validation loss": f"{loss:.4f} nats/token, {bits:.4f} bits/byte, recorded in training"}


CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# {name}

| | |
|---|---|
{rows}

{note}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("."{remote})
model = AutoModelForCausalLM.from_pretrained("."{remote})
tokens = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=50)[0]))
```

A base model: it continues text and was never taught to follow instructions or to avoid harm. Its documents were joined by the
end-of-text token, which is bos and eos here; nothing is put in front of a prompt.
"""
