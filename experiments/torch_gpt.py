"""The GPT of `lmx.models.gpt` written in PyTorch as one would: the peer that `bench_train` measures our step against."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, use_bias: bool, dropout_rate: float):
        super().__init__()
        self.num_heads, self.dropout_rate = num_heads, dropout_rate
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim, bias=use_bias), nn.LayerNorm(dim, bias=use_bias)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, use_bias), nn.Linear(dim, dim, use_bias)
        self.up, self.down = nn.Linear(dim, 4 * dim, use_bias), nn.Linear(4 * dim, dim, use_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(self.attention_norm(x)).chunk(3, dim=-1))
        rate = self.dropout_rate if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.out(attended), rate)
        return x + F.dropout(self.down(F.gelu(self.up(self.mlp_norm(x)), approximate='tanh')), rate)


class GPT(nn.Module):
    """tokens [B, T] -> logits [B, T, V]: learned positions, tied output weights."""

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        max_length: int,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
    ):
        super().__init__()
        self.dropout_rate = dropout_rate
        self.embed, self.position_embed = nn.Embedding(vocab_size, dim), nn.Embedding(max_length, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads, use_bias, dropout_rate) for _ in range(num_layers))
        self.final_norm = nn.LayerNorm(dim, bias=use_bias)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(('out.weight', 'down.weight'))
                nn.init.normal_(parameter, std=0.02 / (2 * num_layers) ** 0.5 if residual else 0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(parameter)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.position_embed.weight[: tokens.shape[1]]
        x = F.dropout(x, self.dropout_rate if self.training else 0.0)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.final_norm(x), self.embed.weight)


def train_step(
    model: nn.Module, *, learning_rate: float = 1e-3, weight_decay: float = 0.1, clip_norm: float = 1.0, autocast: Any = None
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(inputs, targets) -> loss, after one AdamW update with decay of matrices only and clipped gradients."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    groups = [{'params': decayed, 'weight_decay': weight_decay}, {'params': plain, 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), fused=True)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast or contextlib.nullcontext():
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        return loss.detach()

    return step


def make_step(
    *, compiled: bool = False, device: str = 'cpu', dtype: torch.dtype = torch.float32, **sizes: int
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The train step of a fresh model of these sizes without biases, eager or through torch.compile; below float32 under autocast."""
    model = GPT(**sizes, use_bias=False).to(device)
    forward = torch.compile(model) if compiled else model
    return train_step(forward, autocast=None if dtype == torch.float32 else torch.autocast(device, dtype))  # type: ignore[arg-type]
