"""Prompts as tokens, and which token of an anchor prompt stands for which of a forget prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def padded_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int | None = None
) -> Tensor:
    """Token numbers [N, length], model_max_length by default, as pipelines feed text encoders."""
    return tokenizer(
        list(texts),
        padding="max_length",
        max_length=length or tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def pairing(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    anchors: Sequence[str],
    length: int | None = None,
) -> Tensor:
    """For each token of each text, the position of its anchor's that stands for it [N, tokens]."""
    tokens = (padded_tokens(tokenizer, part, length).tolist() for part in (texts, anchors))
    end = tokenizer.eos_token_id
    return torch.tensor([paired_positions(a, b, end) for a, b in zip(*tokens, strict=True)])


def paired_positions(tokens: Sequence[int], anchor: Sequence[int], end: int) -> list[int]:
    """For each position of `tokens`, the position in `anchor` that stands for it.

    Tokens before and after the concept are paired with their equals, the concept's own with the
    anchor's last; padding, which follows `end`, with padding.
    """
    length, anchor_length = tokens.index(end) + 1, anchor.index(end) + 1
    words, instead = list(tokens[:length]), list(anchor[:anchor_length])
    prefix = _common_length(words, instead)
    suffix = _common_length(words[prefix:][::-1], instead[prefix:][::-1])
    pairs = []
    for position in range(len(tokens)):
        if position < prefix:
            pairs.append(position)
        elif position < length - suffix:
            pairs.append(max(prefix, anchor_length - suffix - 1))
        else:
            pairs.append(min(position + anchor_length - length, len(tokens) - 1))
    return pairs


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first items are alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
