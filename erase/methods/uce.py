"""UCE: one least-squares edit of the keys and values that read the text."""

from dataclasses import dataclass

import torch
from torch import Tensor

from erase.checks import require_positive
from erase.core.delta import LowRankDelta
from erase.erasure import Erasure
from erase.methods import register
from erase.request import sample
from erase.tasks.diffusion import DiffusionTask


@dataclass(frozen=True)
class UCEConfig:
    """The least-squares problem of UCE.

    Args:
        rank: largest rank of the edit; what it leaves out is the least of the edit.
        preserve_weight: weight of the retained prompts against the forgotten ones.
        regularisation: weight of leaving all other inputs alone.
        prompts: most prompts of either set to use.
    """

    rank: int = 64
    preserve_weight: float = 1.0
    regularisation: float = 1.0
    prompts: int = 512

    def __post_init__(self) -> None:
        require_positive(self, "rank", "preserve_weight", "regularisation", "prompts")


@register("uce", UCEConfig)
def uce(task: DiffusionTask, config: UCEConfig) -> Erasure:
    """Unified concept editing (Gandikota et al., WACV 2024, eq. 7) of cross-attention K and V.

    W' minimises |W' c - W c*|^2 over forget and anchor token embeddings, plus |W' r - W r|^2 over
    retained ones, plus |W' - W|^2; W' - W = W M for one matrix M, which all layers share.
    """
    forget = sample(task.prompts.forget, min(config.prompts, len(task.prompts.forget)), task.seed)
    retain = sample(task.prompts.retain, min(config.prompts, len(task.prompts.retain)), task.seed)
    tokens, wanted = (t.double().cpu() for t in task.redirected_embeddings(forget))
    with torch.no_grad():
        kept = task.embed([prompt.text for prompt in retain]).double().cpu().flatten(0, 1)
    up, down = shared_edit(tokens, wanted, kept, config)
    deltas = {
        name: LowRankDelta((weight.detach().double().cpu() @ up).float(), down.float())
        for name, weight in task.text_projections().items()
    }
    return Erasure(deltas, {"rank": len(down)})


def shared_edit(
    tokens: Tensor, wanted: Tensor, kept: Tensor, config: UCEConfig
) -> tuple[Tensor, Tensor]:
    """Factors (up [d, k], down [k, d]) of the matrix M that solves UCE's normal equations.

    M (C^T C / n + preserve K^T K / m + regularisation I) = (C* - C)^T C / n, with rows as samples.
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
