"""An attention that returns its log-sum-exp on the CPU, as those of diffusers do on a GPU alone:
what ring attention adds up. It stands in for diffusers' "_native_math", in these processes."""

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    _templated_context_parallel_attention,
)
from torch import Tensor

NAME = AttentionBackendName._NATIVE_MATH


def attend(
    ctx: object,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _save_ctx: bool = True,
    _parallel_config: object = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Of [batch, tokens, heads, channels]; with [batch, tokens, heads] if it is asked for."""
    assert attn_mask is None and not is_causal and not enable_gqa and dropout_p == 0
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bqhd,bkhd->bqhk", query, key) * scale
    lse = torch.logsumexp(scores, dim=-1)
    output = torch.einsum("bqhk,bkhd->bqhd", torch.exp(scores - lse[..., None]), value)
    return (output, lse) if return_lse else output


def dispatched(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    _parallel_config: object = None,
) -> Tensor:
    if _parallel_config is None:
        return attend(None, query, key, value, attn_mask, scale=scale)
    return _templated_context_parallel_attention(
        query,
        key,
        value,
        attn_mask,
        scale=scale,
        forward_op=attend,
        backward_op=None,
        _parallel_config=_parallel_config,
    )


def register() -> None:
    _AttentionBackendRegistry.register(NAME, supports_context_parallel=True)(dispatched)
