"""UCE: one least-squares edit of the weights that read the text itself."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from erase.core.delta import LowRankDelta
from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.prompts.request import sample
from erase.support.config import Config, Positive
from erase.tasks.diffusion.places import TEXT
from erase.tasks.diffusion.task import DiffusionTask


@dataclass(frozen=True)
class UCEConfig(Config):
    """The least-squares problem of UCE.

    Args:
        rank: largest rank of the edit; what it leaves out is the least of the edit.
        preserve_weight: weight of the retained prompts against the forgotten ones.
        regularisation: weight of leaving all other inputs alone, in thousandths of the mean
            energy of the tokens.
        prompts: most prompts of either set to use.
    """

    rank: Positive[int] = 64
    preserve_weight: Positive[float] = 1.0
    regularisation: Positive[float] = 1.0
    prompts: Positive[int] = 512


@register("uce", UCEConfig, DiffusionTask)
def uce(task: DiffusionTask, config: UCEConfig) -> Erasure:
    """Unified concept editing (Gandikota et al., WACV 2024, eq. 7) of what reads the text.

    W' minimises |W' c - W c*|^2 over forget and anchor token embeddings, plus |W' r - W r|^2 over
    retained ones, plus |W' - W|^2; W' - W = W M for one matrix M, which all layers share. That is
    the keys and values of cross-attention, or the one layer through which text enters a
    transformer; whole prompts, where they are read too, count as tokens of a place of their own.
    """
    edits = {
        site: shared_edit(*tokens, config) for site, tokens in editing_tokens(task, config).items()
    }
    return Erasure(edit_deltas(task, edits), {"rank": max(len(down) for _, down in edits.values())})


def editing_tokens(
    task: DiffusionTask, config: UCEConfig
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """At each place: forget tokens and the anchors' for each [n, d], and retained ones [m, d].

    In float64. Raises ValueError if no weight that reads the text itself may change.
    """
    task.sites(TEXT)
    forget, retain = (
        sample(prompts, min(config.prompts, len(prompts)), task.seed)
        for prompts in (task.prompts.forget, task.prompts.retain)
    )
    redirected = task.redirected_readings(forget)
    with torch.no_grad():
        # Guidance reads the empty prompt beside every other.
        kept = task.readings([*(prompt.text for prompt in retain), ""])
    return {
        site: (_exact(tokens), _exact(wanted), _exact(kept[site].flatten(0, 1)))
        for site, (tokens, wanted) in redirected.items()
    }


def _exact(readings: Tensor) -> Tensor:
    return readings.cpu().double()


def edit_deltas(
    task: DiffusionTask, edits: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, LowRankDelta]:
    """W M for every weight W that reads a place, with the place's M = up @ down."""
    weights = task.editable()
    return {
        name: LowRankDelta((weights[name].detach().cpu().double() @ up).float(), down.float())
        for site, (up, down) in edits.items()
        for name in task.sites(TEXT)[site]
    }


def shared_edit(
    tokens: Tensor, wanted: Tensor, kept: Tensor, config: UCEConfig
) -> tuple[Tensor, Tensor]:
    """Factors (up [d, k], down [k, d]) of the matrix M that solves UCE's normal equations.

    M (C^T C / n + preserve K^T K / m + ridge I) = (C* - C)^T C / n, with rows as samples and the
    ridge `regularisation` thousandths of the mean diagonal of what it is added to.
    """
    forget_moment = tokens.T @ tokens / len(tokens)
    keep_moment = kept.T @ kept / len(kept)
    identity = torch.eye(tokens.shape[1], dtype=tokens.dtype)
    normal = forget_moment + config.preserve_weight * keep_moment
    normal = normal + config.regularisation * normal.diagonal().mean() * 1e-3 * identity
    change = (wanted - tokens).T @ tokens / len(tokens)
    edit = torch.linalg.solve(normal, change, left=False)
    left, singular, right = torch.linalg.svd(edit)
    rank = min(config.rank, int((singular > 1e-9).sum()))
    return left[:, :rank] * singular[:rank], right[:rank]
