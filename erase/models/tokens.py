"""Prompts as tokens, and which token of an anchor prompt stands for which of a forget prompt."""

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Readers = Sequence[tuple[str, int | None]]  # tokenizers of a pipeline, how many tokens each reads


def pairing(
    pipeline: DiffusionPipeline, readers: Readers, texts: Sequence[str], anchors: Sequence[str]
) -> Tensor:
    """For each token of each text, the position of its anchor's that stands for it [N, tokens]."""
    parts, first = [], 0
    for name, asked in readers:
        tokenizer = getattr(pipeline, name)
        length = asked or tokenizer.model_max_length
        if tokenizer is None:  # what its encoder would say is all zero then
            pairs = [list(range(length))] * len(texts)
        else:
            tokens = (_tokens(pipeline, tokenizer, part) for part in (texts, anchors))
            pairs = [paired_positions(a, b, length) for a, b in zip(*tokens, strict=True)]
        parts.append(first + torch.tensor(pairs))
        first += length
    return torch.cat(parts, 1)


def last_positions(pipeline: DiffusionPipeline, readers: Readers, texts: Sequence[str]) -> Tensor:
    """Where each tokenizer that is there has each text's last token before its end [N, readers].

    An empty text's is its first token.
    """
    columns, first = [], 0
    for name, asked in readers:
        tokenizer = getattr(pipeline, name)
        length = asked or tokenizer.model_max_length
        if tokenizer is not None:
            counts = torch.tensor([len(ids) for ids in _tokens(pipeline, tokenizer, texts)])
            columns.append(first + (counts.clamp(max=length) - 2).clamp(min=0))
        first += length
    return torch.stack(columns, 1)


def require_read(
    pipeline: DiffusionPipeline, readers: Readers, texts: Sequence[str], anchors: Sequence[str]
) -> None:
    """ValueError for a text of which no tokenizer reads all that tells it from its anchor."""
    unread, length = set(range(len(texts))), 0
    for name, asked in readers:
        if (tokenizer := getattr(pipeline, name)) is None:
            continue
        length = max(length, asked or tokenizer.model_max_length)
        tokens = (_tokens(pipeline, tokenizer, part) for part in (texts, anchors))
        for place, (a, b) in enumerate(zip(*tokens, strict=True)):
            if max(len(a), len(b)) - alike_at_ends(a, b)[1] < (asked or tokenizer.model_max_length):
                unread.discard(place)
    if unread:
        text = texts[min(unread)]
        raise ValueError(
            f"The prompt {text[:40]!r}... names the concept, or its anchor, beyond the {length} "
            "tokens that are read of a prompt; shorten the template or the names."
        )


def _tokens(
    pipeline: DiffusionPipeline, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[list[int]]:
    """The numbers of all tokens of each text, as the pipeline spells it, with none cut off."""
    texts = list(texts)
    if hasattr(pipeline, "maybe_convert_prompt"):  # a word may be several learnt vectors
        texts = pipeline.maybe_convert_prompt(texts, tokenizer)
    elif hasattr(pipeline, "_text_preprocessing"):
        texts = pipeline._text_preprocessing(texts)
    return tokenizer(texts, verbose=False).input_ids


def paired_positions(tokens: Sequence[int], anchor: Sequence[int], length: int) -> list[int]:
    """For each of `length` positions, the position in `anchor` that stands for it.

    Both are whole, to their end token; `length` are read, the last of a longer text is its end.
    Tokens before and after the concept are paired with their equals, the concept's own with the
    anchor's last; padding, which follows the end, with padding.
    """
    prefix, suffix = alike_at_ends(tokens, anchor)
    pairs = []
    for position in range(length):
        if position < prefix:
            pairs.append(position)
        elif position < len(tokens) - suffix:
            pairs.append(max(prefix, len(anchor) - suffix - 1))
        else:
            pairs.append(min(position + len(anchor) - len(tokens), length - 1))
    if len(tokens) > length:
        pairs[-1] = min(len(anchor), length) - 1
    return pairs


def alike_at_ends(words: Sequence[object], others: Sequence[object]) -> tuple[int, int]:
    """How many items are alike at the beginning, and how many of the rest at the end."""
    first = _common_length(words, others)
    return first, _common_length(words[first:][::-1], others[first:][::-1])


def _common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """How many first items are alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
