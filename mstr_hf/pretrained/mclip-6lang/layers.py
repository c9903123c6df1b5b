"""Attention and Transformer layers that mCLIP, Spotter and Refiner share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class WholeCheckpointMixin:
    """Refuses checkpoints whose weights are not the model's; transformers would make up what is missing."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads a model as transformers does (see `PreTrainedModel.from_pretrained`).

        Args:
            pretrained_model_name_or_path: Folder or Hub repository.
            output_loading_info: True gives the model and transformers' report of what did not fit, and leaves it to
                the caller.
            ignore_mismatched_sizes: True makes up weights that have another size in the checkpoint.

        Raises:
            ValueError: If weights cannot be read; or if they are missing, left over or of another size, and no report
                was asked for.
        """
        name = pretrained_model_name_or_path
        kwargs |= {
            "output_loading_info": True,
            # Mismatches are reported below, by name.
            "ignore_mismatched_sizes": ignore_mismatched_sizes or not output_loading_info,
        }
        try:
            model, report = super().from_pretrained(name, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"{name}: its weights cannot be read ({error}): cut off; fetch them again") from error
        if output_loading_info:
            return model, report
        misfits = {kind: sorted(map(str, report[f"{kind}_keys"])) for kind in ("missing", "unexpected")}
        if not ignore_mismatched_sizes:
            misfits["mismatched"] = sorted(str(key[0]) for key in report["mismatched_keys"])
        for kind, names in misfits.items():
            if names:
                raise ValueError(
                    f"{name}: {len(names)} {kind} weights, such as {names[0]}: the checkpoint is cut off or of another "
                    "version of mstr_hf; fetch it again, or install the version that wrote it"
                )
        return model


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention that also returns its weights `[B, heads, T, S]`."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def additive_mask(keep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Boolean `[B, S]` (True = attend) to an additive mask `[B, 1, 1, S]`."""
    return torch.zeros_like(keep, dtype=dtype).masked_fill(~keep, torch.finfo(dtype).min)[:, None, None, :]


def cosines(embeddings: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Products of unit embeddings `[..., D]` and unit rows `[N, D]` or `[D]`, `[..., N]` or `[...]`.

    In float32 under autocast too: those of characters that look alike differ by less than bfloat16 can tell.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        return embeddings.float() @ rows.float().t()


class Attention(nn.Module):
    """Multi-head attention over the states themselves or over a memory, with an optional key/value cache.

    Args:
        config: Model configuration; chooses the attention implementation.
        hidden_size: Width of the states.
        num_heads: Attention heads.
        layer_idx: Place in the cache, for decoder layers.
    """

    # transformers' attention functions read this attribute.
    is_causal = False

    def __init__(self, config: PreTrainedConfig, hidden_size: int, num_heads: int, layer_idx: int = 0):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        memory: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends.

        Args:
            hidden_states: `[B, T, C]`.
            memory: `[B, S, C]` for cross attention, or `[B / K, S, C]` where every K states that follow each other are
                of one memory (beams); None for self attention.
            attention_mask: Additive, broadcastable to `[B, heads, T, S]`.
            past_key_values: Cache to read and extend. A `DynamicCache` is of the states themselves: the memory is
                then attended to without keys and values of its own.

        Returns:
            States `[B, T, C]`, and weights `[B, heads, T, S]` where the implementation gives them.
        """
        shape = hidden_states.shape
        if memory is not None:
            hidden_states = hidden_states.reshape(memory.shape[0], -1, shape[-1])
        batch, length, _ = hidden_states.shape
        if memory is not None and isinstance(past_key_values, DynamicCache):
            past_key_values = None
            # What stands in a layer's place, such as an adapter, has no single weight.
            if all(type(p) is nn.Linear and not p.weight.is_meta for p in (self.k_proj, self.v_proj)):
                states, weights = self._attend_unprojected(hidden_states, memory, attention_mask)
                return states.view(shape), weights
        query = self.q_proj(hidden_states).view(batch, length, -1, self.head_dim).transpose(1, 2)
        cache, ready = past_key_values, False
        if isinstance(past_key_values, EncoderDecoderCache):
            if memory is None:
                cache = past_key_values.self_attention_cache
            else:
                cache = past_key_values.cross_attention_cache
                ready = bool(past_key_values.is_updated.get(self.layer_idx))
                past_key_values.is_updated[self.layer_idx] = True
        if ready:
            key, value = cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        else:
            source = hidden_states if memory is None else memory
            key = self.k_proj(source).view(batch, -1, query.shape[1], self.head_dim).transpose(1, 2)
            value = self.v_proj(source).view(batch, -1, query.shape[1], self.head_dim).transpose(1, 2)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        states, weights = attend(
            self, query, key, value, attention_mask, scaling=self.head_dim**-0.5, dropout=0.0, is_causal=False
        )
        return self.out_proj(states.reshape(shape)), weights

    def _attend_unprojected(
        self, hidden_states: torch.Tensor, memory: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attends to a memory as it is: queries are projected instead of keys, and sums instead of values.

        The same result, for a small part of the work where all queries to a memory are few. (The keys' bias adds the
        same to all scores of a query, which the softmax takes out again.)
        """
        batch, length, width = hidden_states.shape
        key_weight = self.k_proj.weight.view(-1, self.head_dim, width)
        value_weight = self.v_proj.weight.view(-1, self.head_dim, width)
        heads = len(key_weight)
        queries = self.q_proj(hidden_states).view(batch * length, heads, self.head_dim).transpose(0, 1)
        queries = (queries @ key_weight).view(heads, batch, length, width).transpose(0, 1).flatten(1, 2)
        scores = queries @ memory.transpose(1, 2) * self.head_dim**-0.5
        if attention_mask is not None:
            scores = scores + attention_mask[:, 0]
        weights = scores.softmax(-1, dtype=torch.float32).to(memory.dtype)
        sums = (weights @ memory).view(batch, heads, length, width).transpose(0, 1).flatten(1, 2)
        states = (sums @ value_weight.transpose(1, 2)).transpose(0, 1).reshape(batch, length, width)
        return self.out_proj(states + self.v_proj.bias), weights.view(batch, heads, length, -1)


class FeedForward(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.act = ACT2FN[activation]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, T, C]` to `[B, T, C]`."""
        return self.fc2(self.act(self.fc1(hidden_states)))


class EncoderLayer(GradientCheckpointingLayer):
    """Pre-LN Transformer encoder layer."""

    def __init__(
        self, config: PreTrainedConfig, hidden_size: int, num_heads: int, intermediate_size: int, activation: str
    ):
        super().__init__()
        self.attn_norm = nn.LayerNorm(hidden_size)
        self.attn = Attention(config, hidden_size, num_heads)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = FeedForward(hidden_size, intermediate_size, activation)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, T, C]` to `[B, T, C]`; the mask is additive."""
        hidden_states = hidden_states + self.attn(self.attn_norm(hidden_states), attention_mask=attention_mask)[0]
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class DecoderLayer(GradientCheckpointingLayer):
    """Pre-LN Transformer decoder layer: causal self attention, cross attention, feed-forward."""

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        activation: str,
        layer_idx: int,
    ):
        super().__init__()
        self.self_attn_norm = nn.LayerNorm(hidden_size)
        self.self_attn = Attention(config, hidden_size, num_heads, layer_idx)
        self.cross_attn_norm = nn.LayerNorm(hidden_size)
        self.cross_attn = Attention(config, hidden_size, num_heads, layer_idx)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp = FeedForward(hidden_size, intermediate_size, activation)

    def forward(
        self,
        hidden_states: torch.Tensor,
        memory: torch.Tensor,
        attention_mask: torch.Tensor | None,
        memory_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """States `[B, T, C]` over a memory `[B, S, C]` to states and both attentions' weights; masks are additive."""
        attended, self_weights = self.self_attn(
            self.self_attn_norm(hidden_states), attention_mask=attention_mask, past_key_values=past_key_values
        )
        hidden_states = hidden_states + attended
        attended, cross_weights = self.cross_attn(
            self.cross_attn_norm(hidden_states), memory, memory_mask, past_key_values=past_key_values
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.mlp_norm(hidden_states)), self_weights, cross_weights


def init_layer_weights(module: nn.Module) -> None:
    """Initialises the standard layers: He for convolutions, Glorot for linear layers, N(0, 0.02) for embeddings."""
    if isinstance(module, nn.Conv2d):
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=0.02)
    elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
        init.ones_(module.weight)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        init.zeros_(module.running_mean)
        init.ones_(module.running_var)
        init.zeros_(module.num_batches_tracked)
    if getattr(module, "bias", None) is not None:
        init.zeros_(module.bias)
