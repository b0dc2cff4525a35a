"""GPT in the names of LlamaForCausalLM: the two compute the same, so nothing is changed but names.

Both rotate channel i with channel i + head_dim/2 (gpt/rope.py), so q and k need no permutation.
"""

import re
from typing import Any

from torch import Tensor, nn

# Ours in a block -> Llama's in a layer.
IN_A_BLOCK = {
    **{f"attn.{name}": f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{f"mlp.{name}": f"mlp.{name}" for name in ("up_proj", "gate_proj", "down_proj")},
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
OUTSIDE = {"embedding": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}


def llama_name(name: str) -> str:
    """Return Llama's name of a weight: blocks.0.attn.q_proj.weight is model.layers.0.self_attn.q_proj.weight."""
    path = name.removesuffix(".weight")
    in_block = re.fullmatch(r"blocks\.(\d+)\.(.+)", path)
    if in_block:
        return f"model.layers.{in_block[1]}.{IN_A_BLOCK[in_block[2]]}.weight"
    return f"{OUTSIDE[path]}.weight"


def llama_weights(model: nn.Module, n_tokens: int) -> dict[str, Tensor]:
    """Return GPT's weights under Llama's names, without the rows of the vocabulary beyond n_tokens."""
    in_vocabulary = ("embedding.weight", "lm_head.weight")
    return {
        llama_name(name): weight[:n_tokens].clone() if name in in_vocabulary else weight
        for name, weight in model.state_dict().items()
    }


def llama_config(config: Any, n_tokens: int) -> dict[str, Any]:
    """Return the config.json of gpt.model.Config, but for dtype and special tokens."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": n_tokens,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "head_dim": config.n_embd // config.n_head,
        "max_position_embeddings": config.sequence_length,
        # transformers 5 reads rope_parameters; 4, vLLM and llama.cpp read rope_theta.
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": config.init_std,
        "use_cache": True,
    }
