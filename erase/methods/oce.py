"""OCE: one rotation of each weight's outputs turns away what is read of the forgotten."""

from dataclasses import dataclass

import torch
from torch import Tensor

from erase.core.delta import DenseDelta
from erase.core.subspace import Subspace, gram
from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.methods.speed import cut, share, share_moved
from erase.methods.uce import UCEConfig, at_most, eigen_fast, exact, retained_tokens, spaces_of
from erase.prompts.request import by_group
from erase.support.config import Config, NotNegative, Positive
from erase.tasks.diffusion.places import TEXT
from erase.tasks.diffusion.task import DiffusionTask

ROUNDING = 1e-5
SQUARED = 1e-11  # below this share of the greatest, squares of singular values are noise


@dataclass(frozen=True)
class OCEConfig(Config):
    """The Procrustes problem of OCE.

    Args:
        erase: weight of turning the forgotten away, in units of the energy that retained outputs
            have along theirs.
        ridge: weight of leaving all other inputs alone, in units of the mean energy of a number
            of a retained token.
        rank: largest rank of the change, as a LoRA; 0 keeps it whole and dense.
        prompts: most prompts of either set to use.
    """

    erase: Positive[float] = 3.0
    ridge: NotNegative[float] = 1.0
    rank: NotNegative[int] = 0
    prompts: Positive[int] = 512


@register("oce", OCEConfig, DiffusionTask, text_alone=lambda _: True)
def oce(task: DiffusionTask, config: OCEConfig) -> Erasure:
    """Orthogonal concept erasure (ICML 2026; arXiv 2605.28902) of what reads the text: W' = P W.

    P = U V^T of the singular vectors of W K W^T - erase R (I - R*), which among all orthogonal
    matrices follows that one most closely. R and R* project onto what W reads of the concepts and
    of their anchors, K is the mean r r^T of retained tokens r with a ridge.

    The authors' code takes the last token of each bare name, we of each concept the mean of what
    its prompts read otherwise than their anchors'; it edits values alone
    (`--task.include '["*attn2.to_v*"]'`), where the paper has keys too; K is of COCO's captions
    and, summed, of what is named, ours of the retain set and the empty prompt. Its weights are
    absolute (2000 or 3500 beside 10 to 50 of K and a ridge of 10). Where det P < 0 it negates the
    last column of P, which belongs to no concept; we leave P orthogonal. On the bundled model no
    weight tried erased more of ten objects than about half.

    The recipe has, by weight, `retained_moved`: |dW r| over |W r| of all retained tokens, and
    `left_out`, the share of |dW| that the rank costs.
    """
    weights, deltas, moved, lost = task.editable(), {}, {}, {}
    for site, (forget, anchors, kept) in concept_means(task, config).items():
        moment = kept.moment()
        ridge = config.ridge * moment.diagonal().mean()
        energies, axes = eigen_fast(moment)
        root = axes * (energies.clamp_min(0) + ridge).sqrt()
        for name in task.sites(TEXT)[site]:
            weight = exact(weights[name].detach())
            known = gram((weight @ root).T)
            turn = rotation(weight, forget, anchors, known, config.erase)
            # float32 rounds the change no more than the file does.
            change = (turn - torch.eye(len(turn))).float() @ weight.float()
            if config.rank:
                deltas[name], lost[name] = cut(DenseDelta(change), config.rank)
                moved[name] = share_moved(weight, deltas[name], kept)
            else:  # |P y - y|^2 = 2 (|y|^2 - y P y) for outputs y, as P is orthogonal
                deltas[name], lost[name] = DenseDelta(change), 0.0
                still = (turn * known).sum() - ridge * (change * weight).sum()
                energy = known.trace() - ridge * weight.square().sum()
                moved[name] = share(2 * (known.trace() - still), energy)
    return Erasure(deltas, {"retained_moved": moved, "left_out": lost})


def concept_means(
    task: DiffusionTask, config: OCEConfig
) -> dict[str, tuple[Tensor, Tensor, Subspace]]:
    """At each place: concepts' means and their anchors' [n, d], and the space of retained tokens.

    A mean is over those tokens of a concept's prompts that differ from the anchors'.
    """
    forget = at_most(task.prompts.forget, config.prompts, task.seed)
    pairs: dict[str, list[Tensor]] = {}
    for group in by_group(forget).values():
        for site, (tokens, wanted) in task.redirected_readings(group).items():
            differs = (tokens != wanted).any(1)
            chosen = differs if differs.any() else ~differs
            means = [exact(rows[chosen]).mean(0) for rows in (tokens, wanted)]
            pairs.setdefault(site, []).append(torch.stack(means))
    kept = spaces_of(retained_tokens(task, UCEConfig(prompts=config.prompts)))
    return {site: (*torch.stack(pairs[site], 1), rows) for site, rows in kept.items()}


def rotation(
    weight: Tensor, forget: Tensor, anchors: Tensor, retained: Tensor, erase: float
) -> Tensor:
    """The orthogonal P [o, o] nearest to W K W^T - erase R (I - R*), for W [o, d].

    retained is W K W^T [o, o]. R and R* project onto what W makes of the rows of forget and anchors
    [n, d]; erase is in units of the mean energy of W K W^T along R.
    """
    outputs, inputs = weight.shape
    if outputs > inputs:  # P leaves alone what W never says
        basis, weight = torch.linalg.qr(weight)
        turn = rotation(weight, forget, anchors, basis.T @ retained @ basis, erase)
        return torch.eye(outputs).double() + basis @ (turn - torch.eye(inputs).double()) @ basis.T
    erased, guide = (span(weight @ rows.T) for rows in (forget, anchors))
    scale = erase * torch.trace(erased.T @ retained @ erased) / erased.shape[1]
    away = erased @ (erased.T - erased.T @ guide @ guide.T)
    return nearest_orthogonal(retained - scale * away)


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """U V^T [o, o] of the singular vectors of a matrix [o, o]."""
    energies, axes = eigen_fast(gram(matrix))
    if energies[0] > SQUARED * energies[-1]:  # A (A^T A)^-1/2, in a third of the time
        return matrix @ gram((axes / energies**0.25).T)
    left, _, right = torch.linalg.svd(matrix)
    return left @ right


def span(vectors: Tensor) -> Tensor:
    """An orthonormal basis [o, k] of the columns of vectors [o, n], but for rounding noise."""
    left, singular, _ = torch.linalg.svd(vectors, full_matrices=False)
    return left[:, singular > ROUNDING * singular.max()]
