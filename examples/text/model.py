"""A custom body: a convolution over tokens that respects the mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Convolution(nn.Module):
    """Maps ids and mask (B, L) to features (B, 2·width): the maximum and the mean of each channel over the text's
    tokens."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.convolution = nn.Conv1d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        there = attention_mask.unsqueeze(-1).float()
        x = self.embedding(input_ids) * there
        x = x + self.convolution(x.transpose(1, 2)).transpose(1, 2)
        x = nn.functional.gelu(self.norm(x))
        mean = (x * there).sum(1) / there.sum(1)
        largest = x.masked_fill(there == 0, -torch.inf).amax(1)
        return torch.cat([largest, mean], dim=1)


def make_body(tokens: int = 1000, width: int = 64) -> nn.Module:
    return Convolution(tokens, width)
