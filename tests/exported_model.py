"""Run by test_export.py in a process of its own, outside the repository: what transformers makes of exported folders.

usage: python exported_model.py REQUESTS.json; nothing but torch, transformers and safetensors is imported.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def answer(folder: str, request: dict) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == request["class"], type(model)
    found = {}
    for number, text in enumerate(request["texts"]):
        parsed = tokenizer(text)["input_ids"]
        assert tokenizer.decode(parsed) == text, text
        found[f"parsed/{number}"] = torch.tensor(parsed)
        found[f"ordinary/{number}"] = torch.tensor(tokenizer(text, split_special_tokens=True)["input_ids"])
    tokens = torch.tensor(request["tokens"])
    for implementation in request["attention"]:
        model.set_attn_implementation(implementation)
        found[f"logits/{implementation}"] = model(tokens).logits
    found["loss"] = model(tokens, labels=tokens).loss
    prompt = torch.tensor([request["prompt"]])
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(request["prompts"], return_tensors="pt", padding=True)
    assert batch["attention_mask"][:, -1].all() and not batch["attention_mask"].all(), "padded on the left"
    for use_cache in (True, False):
        settings = {
            "max_new_tokens": request["new_tokens"],
            "do_sample": False,
            "use_cache": use_cache,
            "eos_token_id": None,
        }
        found[f"generated/{use_cache}"] = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[0]
        found[f"batch/{use_cache}"] = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    half = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    found["logits/bfloat16"] = half(tokens).logits.float()
    found["bfloat16_scales"] = torch.tensor(sum(p.dtype == torch.float32 for p in half.parameters()))
    return found


with torch.no_grad():
    for request in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        found = answer(request["folder"], request)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, f"{request['name']}.safetensors")
assert not {"gpt", "ngpt", "engine", "corpus", "export"} & set(sys.modules)
