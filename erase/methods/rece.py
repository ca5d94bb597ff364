"""RECE: UCE in rounds, each against the embeddings that would bring the concept back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.methods.uce import UCEConfig, edit_deltas, editing_tokens, shared_edit
from erase.support.config import Config, Positive
from erase.tasks.diffusion.places import TEXT
from erase.tasks.diffusion.task import DiffusionTask


@dataclass(frozen=True)
class RECEConfig(Config):
    """The rounds and the least-squares problems of RECE.

    Args:
        rounds: how many times embeddings are derived and edited away.
        embedding_weight: weight of keeping derived embeddings short, against the fit.
        uce: each round's problem.
    """

    rounds: Positive[int] = 2
    embedding_weight: Positive[float] = 0.1
    uce: UCEConfig = field(default_factory=UCEConfig)


@register("rece", RECEConfig, DiffusionTask)
def rece(task: DiffusionTask, config: RECEConfig) -> Erasure:
    """UCE against its own adversary (after RECE; Gong et al., ECCV 2024).

    Each round adds to the forget tokens those embeddings that make the edited keys and values most
    like the base's, and solves the whole problem again from the base.
    """
    parameters, edits = task.editable(), {}
    for site, tokens in editing_tokens(task, config.uce).items():
        weights = [parameters[name].detach().cpu().double() for name in task.sites(TEXT)[site]]
        edits[site] = _edit_in_rounds(weights, *tokens, config)
    rank = max(len(down) for _, down in edits.values())
    return Erasure(edit_deltas(task, edits), {"rank": rank, "rounds": config.rounds})


def _edit_in_rounds(
    weights: Sequence[Tensor], tokens: Tensor, wanted: Tensor, kept: Tensor, config: RECEConfig
) -> tuple[Tensor, Tensor]:
    """The factors of the last round's edit at one place."""
    sources, targets = tokens, wanted
    for _ in range(config.rounds):
        up, down = shared_edit(sources, targets, kept, config.uce)
        derived = adversarial_tokens(weights, up @ down, tokens, config.embedding_weight)
        sources, targets = torch.cat([sources, derived]), torch.cat([targets, wanted])
    return shared_edit(sources, targets, kept, config.uce)


def adversarial_tokens(
    weights: Sequence[Tensor], edit: Tensor, tokens: Tensor, embedding_weight: float
) -> Tensor:
    """The x [n, d] that minimise sum |W (I + M) x - W c|^2 + weight |x|^2, scaled, for tokens c."""
    gram = sum(weight.T @ weight for weight in weights)
    edited = torch.eye(len(edit), dtype=edit.dtype) + edit
    normal = edited.T @ gram @ edited
    ridge = embedding_weight * normal.diagonal().mean()
    normal = normal + ridge * torch.eye(len(edit), dtype=edit.dtype)
    return torch.linalg.solve(normal, edited.T @ gram @ tokens.T).T
