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
        regularisation: weight of leaving all other inputs alone, in thousandths of the mean
            energy of the tokens.
        prompts: most prompts of either set to use.
    """

    rank: int = 64
    preserve_weight: float = 1.0
    regularisation: float = 1.0
    prompts: int = 512

    def __post_init__(self) -> None:
        require_positive(self, "rank", "preserve_weight", "regularisation", "prompts")


@register("uce", UCEConfig, DiffusionTask)
def uce(task: DiffusionTask, config: UCEConfig) -> Erasure:
    """Unified concept editing (Gandikota et al., WACV 2024, eq. 7) of cross-attention K and V.

    W' minimises |W' c - W c*|^2 over forget and anchor token embeddings, plus |W' r - W r|^2 over
    retained ones, plus |W' - W|^2; W' - W = W M for one matrix M, which all layers share.
    """
    up, down = shared_edit(*editing_tokens(task, config), config)
    return Erasure(edit_deltas(task, up, down), {"rank": len(down)})


def editing_tokens(task: DiffusionTask, config: UCEConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Forget tokens and the anchors' for each [n, d], and retained ones [m, d], in float64.

    Raises ValueError if no key or value of cross-attention may change.
    """
    task.sites("cross_attention")
    forget, retain = (
        sample(prompts, min(config.prompts, len(prompts)), task.seed)
        for prompts in (task.prompts.forget, task.prompts.retain)
    )
    tokens, wanted = task.redirected_embeddings(forget)
    with torch.no_grad():
        # Guidance reads the empty prompt beside every other.
        kept = task.embed([*(prompt.text for prompt in retain), ""]).flatten(0, 1)
    return tokens.cpu().double(), wanted.cpu().double(), kept.cpu().double()


def edit_deltas(task: DiffusionTask, up: Tensor, down: Tensor) -> dict[str, LowRankDelta]:
    """W M for every key and value weight W, with M = up @ down."""
    weights = task.editable()
    return {
        name: LowRankDelta((weights[name].detach().cpu().double() @ up).float(), down.float())
        for name in task.sites("cross_attention")["text"]
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
