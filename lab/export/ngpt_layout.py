"""nGPT in the names of modeling_ngpt.py, its learned scales folded into the matrices where that is exact.

    s_u * (W_up x)                = (s_u[:, None] * W_up) x                     eq. 20
    s_v sqrt(n_embd) * (W_gate x) = (s_v[:, None] sqrt(n_embd) * W_gate) x      eq. 21
    s_z * (E_out h)               = (s_z[:, None] * E_out) h                    eq. 3

s_qk stands behind the norm of q and k, alpha between two norms: no matrix can take them up. They are stored as
vectors of their effective values.
"""

from typing import Any

from torch import Tensor, nn


def ngpt_weights(model: nn.Module, n_tokens: int) -> dict[str, Tensor]:
    """Return nGPT's weights under the names of modeling_ngpt.py, without the rows of the vocabulary beyond n_tokens."""
    weights = {"model.embed_tokens.weight": model.embedding.weight[:n_tokens].clone()}
    for index, block in enumerate(model.blocks):
        attn, mlp, layer = block.attn, block.mlp, f"model.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{layer}.self_attn.{name}.weight"] = getattr(attn, name).weight
        weights |= {
            f"{layer}.self_attn.sqk": attn.sqk(),
            f"{layer}.mlp.up_proj.weight": mlp.su()[:, None] * mlp.up_proj.weight,
            f"{layer}.mlp.gate_proj.weight": mlp.sv()[:, None] * mlp.gate_proj.weight * model.config.n_embd**0.5,
            f"{layer}.mlp.down_proj.weight": mlp.down_proj.weight,
            f"{layer}.attn_alpha": block.attn_alpha().abs(),
            f"{layer}.mlp_alpha": block.mlp_alpha().abs(),
        }
    weights["lm_head.weight"] = model.unembedding()[:n_tokens].clone()
    return weights


def ngpt_config(config: Any, n_tokens: int) -> dict[str, Any]:
    """Return the config.json of ngpt.model.Config, but for dtype and special tokens."""
    return {
        "architectures": ["NgptForCausalLM"],
        "model_type": "ngpt",
        "auto_map": {
            "AutoConfig": "configuration_ngpt.NgptConfig",
            "AutoModel": "modeling_ngpt.NgptModel",
            "AutoModelForCausalLM": "modeling_ngpt.NgptForCausalLM",
        },
        "vocab_size": n_tokens,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "max_position_embeddings": config.sequence_length,
        "rope_theta": config.rope_base,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
