"""nGPT, the normalized Transformer (arXiv 2410.01131), for transformers: trust_remote_code=True loads this file.

The learned scales are folded into the matrices where that is exact: s_u into the rows of up_proj, s_v sqrt(n_embd) into those
of gate_proj, s_z into those of lm_head. attn_alpha, mlp_alpha and sqk hold their effective values.
Shapes: B batch, T positions, S positions in the cache too, C hidden_size, H heads, K = C/H head_dim.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from .configuration_ngpt import NgptConfig

# transformers 5.24 renames past_key_values to cache, in its functions, in what generate() passes, and in what it reads.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
EPSILON = 1e-12  # added to the squared norm: nothing beside a unit vector's 1.0, and a zero vector stays zero


def normalize(x: Tensor) -> Tensor:
    """Return x with unit L2 norm along its last dimension, in (at least) fp32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPSILON)


def rotary_table(position_ids: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (B, T, 1, K) of the positions (B, T), in the rotate-half layout."""
    # Angles in float64: float32 ones would be off by 1e-3 at position 32k. Apple's GPUs have no float64.
    dtype = torch.float32 if position_ids.device.type == "mps" else torch.float64
    channel = torch.arange(0, head_dim, 2, dtype=dtype, device=position_ids.device)
    angle = position_ids[:, :, None, None].to(dtype) * base ** (-channel / head_dim)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().float(), angle.sin().float()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, T, H, K) by its positions."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def eager_attention_forward(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Return softmax(scaling * q k^T + attention_mask) v as (B, T, H, K), and the weights: attn_implementation="eager"."""
    weights = scaling * (q @ k.transpose(2, 3))
    if attention_mask is not None:
        weights = weights + attention_mask[..., : k.shape[-2]]
    weights = F.dropout(weights.softmax(dim=-1, dtype=torch.float32).to(q.dtype), dropout, module.training)
    return (weights @ v).transpose(1, 2).contiguous(), weights


def causal_mask(config: NgptConfig, embeds: Tensor, attention_mask: Tensor | None, cache, position_ids: Tensor):
    """Return the mask that the chosen attention takes; the names of the arguments differ between versions of transformers."""
    known = inspect.signature(create_causal_mask).parameters
    arguments = {"inputs_embeds" if "inputs_embeds" in known else "input_embeds": embeds}
    if "cache_position" in known:
        seen = cache.get_seq_length() if cache is not None else 0
        arguments["cache_position"] = torch.arange(seen, seen + embeds.shape[1], device=embeds.device)
    arguments["cache" if "cache" in known else "past_key_values"] = cache
    return create_causal_mask(config=config, attention_mask=attention_mask, position_ids=position_ids, **arguments)


class NgptAttention(nn.Module):
    def __init__(self, config: NgptConfig, layer_idx: int):
        super().__init__()
        C = config.hidden_size
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.num_key_value_groups = config.head_dim, 1
        self.scaling, self.is_causal = config.head_dim**0.5, True  # section 2.3.2
        self.q_proj = nn.Linear(C, C, bias=False)
        self.k_proj = nn.Linear(C, C, bias=False)
        self.v_proj = nn.Linear(C, C, bias=False)
        self.o_proj = nn.Linear(C, C, bias=False)
        self.sqk = nn.Parameter(torch.ones(C))

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], attention_mask, past_key_values, **kwargs) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = apply_rotary(normalize(self.q_proj(x).view(heads)), *rotary)  # eq. 15: a rotation keeps the norm
        k = apply_rotary(normalize(self.k_proj(x).view(heads)), *rotary)  # eq. 16
        v = self.v_proj(x).view(heads)
        q = self.sqk.to(q.dtype).square().view(-1, self.head_dim) * q  # eq. 15, 16: (s q)(s k) = (s^2 q) k
        q, k, v = (y.to(v.dtype).transpose(1, 2) for y in (q, k, v))  # (B, H, T, K)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        y, _ = self.attention()(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(y.reshape(x.shape))

    def attention(self):
        """Return the function that config._attn_implementation names, as transformers 5 and 4 look it up."""
        # Spelled in full, both of them: set_attn_implementation() searches this file for these words.
        if hasattr(ALL_ATTENTION_FUNCTIONS, "get_interface"):
            return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        if self.config._attn_implementation == "eager":
            return eager_attention_forward
        return ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]


class NgptMLP(nn.Module):
    def __init__(self, config: NgptConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(x) * F.silu(self.gate_proj(x)))  # eq. 20 to 22, scales in the matrices


class NgptDecoderLayer(nn.Module):
    def __init__(self, config: NgptConfig, layer_idx: int):
        super().__init__()
        self.self_attn = NgptAttention(config, layer_idx)
        self.mlp = NgptMLP(config)
        self.attn_alpha = nn.Parameter(torch.full((config.hidden_size,), 0.05))
        self.mlp_alpha = nn.Parameter(torch.full((config.hidden_size,), 0.05))

    def forward(self, h: Tensor, dtype: torch.dtype, **kwargs) -> Tensor:
        """Return the next hidden states (B, T, C), in fp32; the matrix products are computed in dtype."""
        h = normalize(h.lerp(normalize(self.self_attn(h.to(dtype), **kwargs)), self.attn_alpha.to(h.dtype)))  # eq. 10
        h = normalize(h.lerp(normalize(self.mlp(h.to(dtype))), self.mlp_alpha.to(h.dtype)))  # eq. 11
        return h


class NgptPreTrainedModel(PreTrainedModel):
    config_class = NgptConfig
    base_model_prefix = "model"
    _no_split_modules = ["NgptDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _keep_in_fp32_modules_strict = ["attn_alpha", "mlp_alpha", "sqk"]  # a few vectors, where bf16 would cost digits
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class NgptModel(NgptPreTrainedModel):
    def __init__(self, config: NgptConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(NgptDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        cache=None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Return the final hidden states (B, T, C) of input_ids (B, T); no norm remains, not even the final one."""
        past_key_values = cache if past_key_values is None else past_key_values
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if output_attentions:
            raise ValueError("output_attentions: the attention weights are not collected")
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + embeds.shape[1], device=embeds.device)[None]
        mask = causal_mask(self.config, embeds, attention_mask, past_key_values, position_ids)
        kwargs |= {"attention_mask": mask, "past_key_values": past_key_values, "position_ids": position_ids}
        rotary = rotary_table(position_ids, self.config.head_dim, self.config.rope_theta)
        h = embeds.to(torch.promote_types(embeds.dtype, torch.float32))
        states = [h]
        for layer in self.layers:
            h = layer(h, embeds.dtype, rotary=rotary, **kwargs)
            states.append(h)
        return BaseModelOutputWithPast(
            last_hidden_state=h.to(embeds.dtype),
            hidden_states=tuple(states) if output_hidden_states else None,
            **{CACHE: past_key_values},
        )


class NgptForCausalLM(NgptPreTrainedModel, GenerationMixin):
    def __init__(self, config: NgptConfig):
        super().__init__(config)
        self.model = NgptModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | None = None,
        cache=None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Return the logits (B, T, V), of the last logits_to_keep positions alone unless that is 0, and the loss of labels."""
        output = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache if past_key_values is None else past_key_values,
            inputs_embeds,
            use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        kept_states = {CACHE: getattr(output, CACHE), "hidden_states": output.hidden_states}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **kept_states)
