"""RECE: UCE in rounds, each against the embeddings that would bring the concept back."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from erase.core.subspace import subspace_of, sum_of_grams
from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.methods.uce import PUBLISHED as PUBLISHED_UCE
from erase.methods.uce import (
    Asked,
    UCEConfig,
    asked_of,
    edit_deltas,
    editing_tokens,
    exact,
    factors,
    retained,
    retained_tokens,
    shared_edit,
    spaces_of,
)
from erase.prompts.request import sample
from erase.support.config import Config, Positive
from erase.tasks.diffusion.places import TEXT
from erase.tasks.diffusion.task import DiffusionTask


@dataclass(frozen=True)
class RECEConfig(Config):
    """The rounds and the least-squares problems of RECE.

    Args:
        rounds: how many times embeddings are derived and edited away.
        embedding_weight: weight of keeping derived embeddings short, against the fit.
        uce: the first edit's problem, and each round's that starts from the base.
        start: "base" solves the whole problem anew with all embeddings derived so far; "edited"
            edits the edited weights again, with the last ones alone.
        ridge: "absolute" takes embedding_weight as it is, whatever the weights' energy.
        later: each round's problem that starts from edited weights.
    """

    rounds: Positive[int] = 2
    embedding_weight: Positive[float] = 0.1
    uce: UCEConfig = field(default_factory=UCEConfig)
    start: Literal["base", "edited"] = "base"
    ridge: Literal["relative", "absolute"] = "relative"
    later: UCEConfig = field(default_factory=UCEConfig)


LATER = replace(PUBLISHED_UCE, preserve_weight=0.1, regularisation=0.1, tokens="all")
PUBLISHED = RECEConfig(3, 0.1, PUBLISHED_UCE, "edited", "absolute", LATER)


@register("rece", RECEConfig, DiffusionTask, published=PUBLISHED, text_alone=lambda _: True)
def rece(task: DiffusionTask, config: RECEConfig) -> Erasure:
    """UCE against its own adversary (after RECE; Gong et al., ECCV 2024).

    Each round adds to the forget tokens those embeddings that make the edited keys and values most
    like the base's, and solves the whole problem again from the base.

    The authors' code, which the preset published follows, edits the edited weights on, with the
    last embeddings alone, of all positions of the name and position by position towards the
    anchor's as the weights are by then; it keeps the empty prompt, once for each name, and its
    ridges are absolute (.1). It starts from a checkpoint of UCE's older code (which edits from the
    last token on), where the preset starts from UCE's present one; validation on drawn pictures,
    which picks the best of its 3 rounds, is left out.
    """
    parameters, edits, read = task.editable(), {}, editing_tokens(task, config.uce)
    positions = _by_position(task, config.later) if config.start == "edited" else {}
    kept = spaces_of(retained_tokens(task, config.uce))
    for site, pair in read.items():
        reading = (exact(parameters[name].detach()) for name in task.sites(TEXT)[site])
        read_by, asked = sum_of_grams(reading), asked_of(*pair)
        spared = retained(kept[site], config.uce)
        if config.start == "edited":
            first = shared_edit(asked, spared, config.uce)
            edits[site] = _edit_onwards(read_by, first, *positions[site], config)
        else:
            edits[site] = _edit_in_rounds(read_by, asked, spared, config)
    rank = max(len(down) for _, down in edits.values())
    return Erasure(edit_deltas(task, edits), {"rank": rank, "rounds": config.rounds})


def _edit_in_rounds(
    read_by: Tensor, asked: Asked, kept: Tensor, config: RECEConfig
) -> tuple[Tensor, Tensor]:
    """The factors of the last round's edit at one place."""
    so_far = asked
    for _ in range(config.rounds):
        up, down = shared_edit(so_far, kept, config.uce)
        so_far += asked.turned(adversary(read_by, up @ down, config))
    return shared_edit(so_far, kept, config.uce)


def _by_position(
    task: DiffusionTask, config: UCEConfig
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """At each place all tokens of forget and of anchor prompts, and as many empty ones: [n, d]."""
    forget = sample(task.prompts.forget, min(config.prompts, len(task.prompts.forget)), task.seed)
    texts = [p.text for p in forget], [p.anchor for p in forget], [""] * len(forget)
    with torch.no_grad():
        old, new, empty = (task.readings(of) for of in texts)
    return {
        site: (exact(old[site].flatten(0, 1)), exact(new[site].flatten(0, 1)),
               exact(empty[site].flatten(0, 1)))
        for site in old
    }  # fmt: skip


def _edit_onwards(
    read_by: Tensor,
    first: tuple[Tensor, Tensor],
    tokens: Tensor,
    wanted: Tensor,
    kept: Tensor,
    config: RECEConfig,
) -> tuple[Tensor, Tensor]:
    """The factors of all edits at one place together: W (I + M) (I + M') ... - W."""
    added, asked = retained(subspace_of(kept), config.later), asked_of(tokens, wanted)
    identity = torch.eye(tokens.shape[1], dtype=tokens.dtype)
    edited, (up, down) = identity, first
    for _ in range(config.rounds):
        edited = edited + edited @ up @ down
        turn = adversary(read_by, edited - identity, config)
        up, down = shared_edit(asked.turned(turn), added, config.later)
    return factors(edited + edited @ up @ down - identity, config.later.rank)


def adversary(read_by: Tensor, edit: Tensor, config: RECEConfig) -> Tensor:
    """The Q [d, d] of which x = Q c minimises sum |W (I + M) x - W c|^2 + weight |x|^2 for any c.

    read_by [d, d] is the sum of W^T W, the edit M. The weight is in units of the mean energy of
    W (I + M), unless it is absolute.
    """
    edited = torch.eye(len(edit), dtype=edit.dtype) + edit
    read = edited.T @ read_by
    normal = read @ edited
    scale = normal.diagonal().mean() if config.ridge == "relative" else 1.0
    normal = normal + config.embedding_weight * scale * torch.eye(len(edit), dtype=edit.dtype)
    return torch.linalg.solve(normal, read)
