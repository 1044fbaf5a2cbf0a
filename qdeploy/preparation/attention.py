"""Attention as the products it consists of, so that their operands are quantized."""

from __future__ import annotations

import math
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from qdeploy.preparation.graph import replace, shape_of


class OpenAttention(nn.Module):
    """nn.MultiheadAttention written out: a Linear each for query, key, value and output.

    query, key, value are batches of sequences; a mask leaves the two inner products to PyTorch's
    fused operator, which stays in float.
    """

    in_proj_bias = None  # nn.TransformerEncoderLayer then keeps off its own fused operator

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first = whole.num_heads, whole.batch_first
        self.scale = 1 / math.sqrt(whole.head_dim)
        weights = (
            whole.in_proj_weight.chunk(3)
            if whole.in_proj_weight is not None
            else (whole.q_proj_weight, whole.k_proj_weight, whole.v_proj_weight)
        )
        biases = (None,) * 3 if whole.in_proj_bias is None else whole.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(linear, weights, biases)
        self.dropout = nn.Dropout(whole.dropout)
        self.out_proj = linear(whole.out_proj.weight, whole.out_proj.bias)

    def open_state(self, state: dict[str, Tensor], place: str) -> None:
        """Gives the weights of an nn.MultiheadAttention in `state` the names that they have here."""
        for kind in ("weight", "bias"):
            joined = state.pop(f"{place}in_proj_{kind}", None)
            parts = {} if joined is None else dict(zip("qkv", joined.chunk(3), strict=True))
            for name in "qkv":
                part = state.pop(f"{place}{name}_proj_weight", None) if kind == "weight" else None
                if (part := parts.get(name, part)) is not None:
                    state[f"{place}{name}_proj.{kind}"] = part

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (
            projection(x if self.batch_first else x.transpose(0, 1))
            .unflatten(-1, (self.heads, -1))
            .transpose(1, 2)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        weights = None
        mask = None if attn_mask is None else additive(attn_mask)
        if mask is not None and mask.ndim == 3:  # one for each sequence and head
            mask = mask.unflatten(0, (-1, self.heads))
        if key_padding_mask is not None:
            padding = additive(key_padding_mask)[:, None, None]
            mask = padding if mask is None else mask + padding
        if mask is None:
            weights = torch.softmax(torch.matmul(q, k.transpose(-2, -1)) * self.scale, -1)
            x = torch.matmul(self.dropout(weights), v)
        else:
            dropout = self.dropout.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        x = self.out_proj(x.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        return x if self.batch_first else x.transpose(0, 1), weights if need_weights else None


def additive(mask: Tensor) -> Tensor:
    """A mask as what is added to the scores: of a boolean one -inf where it is True, else 0."""
    return torch.where(mask, -torch.inf, 0.0) if mask.dtype == torch.bool else mask


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A Linear of this weight [out, in] and bias [out]."""
    layer = nn.Linear(
        weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype
    )
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    layer.weight.requires_grad_(weight.requires_grad)
    if bias is not None:
        layer.bias.requires_grad_(bias.requires_grad)
    return layer


class OpenEncoder(nn.Module):
    """nn.TransformerEncoder as its layers and its norm, without the shortcut for nested tensors."""

    def __init__(self, whole: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm = whole.layers, whole.norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,  # says what the mask holds anyway
    ) -> Tensor:
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


def can_open_attention(module: nn.Module) -> bool:
    """Whether it is attention without the options that add keys of their own."""
    plain = type(module) is nn.MultiheadAttention
    return plain and module.bias_k is None and not module.add_zero_attn


def open_fused_attention(network: fx.GraphModule) -> None:
    """Writes F.scaled_dot_product_attention without a mask as its two products and a softmax."""
    for node in network.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention):
        if not is_plain(node):
            with_heads(node)
            continue
        q, k, v = node.args[:3]
        scale = node.kwargs.get("scale") or 1 / math.sqrt(shape_of(q)[-1])
        with network.graph.inserting_before(node):
            turned = network.graph.call_method("transpose", (k, -2, -1))
            scores = network.graph.call_function(torch.matmul, (q, turned))
            scaled = network.graph.call_function(operator.mul, (scores, scale))
            weights = network.graph.call_function(torch.softmax, (scaled, -1))
            replace(node, network.graph.call_function(torch.matmul, (weights, v)))


def with_heads(node: fx.Node) -> None:
    """Gives attention on [N, L, E] an axis of one head, which torch.onnx asks for."""
    if len(shape_of(node)) != 3:
        return

    def with_head(x: fx.Node) -> fx.Node:
        return x.graph.call_method("unsqueeze", (x, -3)) if len(shape_of(x)) == 3 else x

    with node.graph.inserting_before(node):
        node.args, node.kwargs = map_arg((node.args, node.kwargs), with_head)
    with node.graph.inserting_after(node):
        alone = node.graph.call_method("squeeze", (node, -3))
    node.replace_all_uses_with(alone, delete_user_cb=lambda user: user is not alone)


def is_plain(node: fx.Node) -> bool:
    """Whether only query, key, value and perhaps a scale are given, three tensors by position."""
    named = {name: value for name, value in node.kwargs.items() if name != "scale"}
    return len(node.args) >= 3 and not any(named.values()) and not any(node.args[3:])
