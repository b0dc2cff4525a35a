"""GPT and nGPT written once more, from the equations alone, in float64 and with loops; nothing here is imported from the project.

`weights` is a state dict. Both functions return the logits (B, T, V).
"""

import math

import torch


def rope(x, base):
    """Rotate x (T, K): channel pair (i, i + K/2) at position t by the angle t * base^(-2i/K)."""
    T, K = x.shape
    out = torch.empty_like(x)
    for t in range(T):
        for i in range(K // 2):
            angle = t * base ** (-2 * i / K)
            a, b = x[t, i], x[t, i + K // 2]
            out[t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[t, i + K // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attend(q, k, v, scale):
    """Causal attention of one head, one position at a time."""
    rows = []
    for t in range(q.shape[0]):
        scores = torch.stack([scale * q[t] @ k[s] for s in range(t + 1)])
        p = scores.exp() / scores.exp().sum()
        rows.append(sum(p[s] * v[s] for s in range(t + 1)))
    return torch.stack(rows)


def unit(x):
    return x / (x * x).sum(-1, keepdim=True).sqrt()


def silu(x):
    return x / (1 + (-x).exp())


def gpt_logits(weights, tokens, n_layer, n_head, base=10000.0, eps=1e-6):
    def rms(x, gain):
        return gain * x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()

    out = []
    for row in tokens:
        h = weights["embedding.weight"][row]
        for layer in range(n_layer):
            w = {k.removeprefix(f"blocks.{layer}."): v for k, v in weights.items() if k.startswith(f"blocks.{layer}.")}
            x = rms(h, w["attn_norm.weight"])
            K = x.shape[-1] // n_head
            heads = []
            for n in range(n_head):
                part = slice(n * K, (n + 1) * K)
                q, k = x @ w["attn.q_proj.weight"][part].T, x @ w["attn.k_proj.weight"][part].T
                if "attn.q_norm.weight" in w:  # GPT with query-key normalization
                    q, k = rms(q, w["attn.q_norm.weight"]), rms(k, w["attn.k_norm.weight"])
                q, k = rope(q, base), rope(k, base)
                heads.append(attend(q, k, x @ w["attn.v_proj.weight"][part].T, 1 / math.sqrt(K)))
            h = h + torch.cat(heads, -1) @ w["attn.o_proj.weight"].T
            x = rms(h, w["mlp_norm.weight"])
            h = h + (x @ w["mlp.up_proj.weight"].T * silu(x @ w["mlp.gate_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
        out.append(rms(h, weights["norm.weight"]) @ weights["lm_head.weight"].T)
    return torch.stack(out)


def ngpt_logits(weights, tokens, n_layer, n_head, base=10000.0, alpha_init=0.05, sz_init=1.0, qk_norm=True):
    """The paper's section 2.6 at the default inits and scales: 1/sqrt(d) for alpha, s_qk and s_z, 1 for s_u and s_v."""
    d = weights["embedding.weight"].shape[1]
    out = []
    for row in tokens:
        h = weights["embedding.weight"][row]
        for layer in range(n_layer):
            w = {k.removeprefix(f"blocks.{layer}."): v for k, v in weights.items() if k.startswith(f"blocks.{layer}.")}
            K = d // n_head
            sqk = w["attn.sqk.stored"] * math.sqrt(d)
            heads = []
            for n in range(n_head):
                part = slice(n * K, (n + 1) * K)
                q = rope(h @ w["attn.q_proj.weight"][part].T, base)
                k = rope(h @ w["attn.k_proj.weight"][part].T, base)
                q, k = (unit(q), unit(k)) if qk_norm else (q, k)
                heads.append(attend(q * sqk[part], k * sqk[part], h @ w["attn.v_proj.weight"][part].T, math.sqrt(K)))
            h_a = unit(torch.cat(heads, -1) @ w["attn.o_proj.weight"].T)
            h = unit(h + (w["attn_alpha.stored"] * alpha_init * math.sqrt(d)).abs() * (h_a - h))
            u = (h @ w["mlp.up_proj.weight"].T) * w["mlp.su.stored"]
            v = (h @ w["mlp.gate_proj.weight"].T) * w["mlp.sv.stored"] * math.sqrt(d)
            h_m = unit((u * silu(v)) @ w["mlp.down_proj.weight"].T)
            h = unit(h + (w["mlp_alpha.stored"] * alpha_init * math.sqrt(d)).abs() * (h_m - h))
        out.append((h @ weights["lm_head.weight"].T) * weights["sz.stored"] * sz_init * math.sqrt(d))
    return torch.stack(out)
