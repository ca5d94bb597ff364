"""The linear change of inputs that moves the retained least for what it leaves of the forgotten."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from erase.core.projection import Projection
from erase.core.subspace import Subspace

RIDGE = 1e-5  # of the mean energy
TINY = 1e-300
SPREAD = 0.1
EVEN, ROUNDS, FASTEST, MOST = 1e-3, 30, 2.0, 20.0  # of `evened`
WEIGHTS = tuple(10.0 ** (i / 4) for i in range(-8, 9))  # of the forgotten beside the retained


@dataclass(frozen=True)
class Heard:
    """What one place reads of both sets, at the same positions; of each group as many inputs."""

    forget: Subspace
    retain: Subspace

    @property
    def gaps(self) -> Tensor:
        """What tells each forget group's means from the retained ones [g, p, d]."""
        return self.forget.means - self.retain.means.mean(0)


@dataclass(frozen=True)
class Setting:
    """A P of `least_squares`, by its weight, and times what strength it is taken.

    moved: how far retained inputs go, squared, beside their variation. spread: how much forgotten
    ones differ in what they keep, squared, beside their gap.
    """

    weight: float
    strength: float
    moved: float
    spread: float

    @property
    def cost(self) -> float:
        """What a search makes least."""
        return self.moved + SPREAD * self.spread


def least_squares(heard: Heard, weight: float, asked: Tensor | None = None) -> Tensor:
    """The P [d, d] that minimises weight E |P x - gap|^2 + E |P r|^2 + ridge |P|^2.

    x are forgotten inputs, each with its group's gap at its position, r retained ones, so that
    I - P takes each group to the retained mean and leaves the retained where they are. With
    `asked` [g], of each group's gaps so many times as much.
    """
    means, gaps = heard.forget.means.flatten(0, 1), heard.gaps
    gaps = (gaps if asked is None else asked[:, None, None] * gaps).flatten(0, 1)
    normal = weight * heard.forget.moment() + heard.retain.moment()
    normal += RIDGE * normal.diagonal().mean().clamp_min(TINY) * torch.eye(len(normal)).double()
    return torch.linalg.solve(normal, weight / len(means) * gaps.T @ means, left=False)


def setting_of(
    held: Heard, gaps: Tensor, change: Tensor, gram: Tensor, left: float, weight: float
) -> Setting:
    """The strength at which inputs lose all but a share `left` of their gaps [g, p, d] to P [d, d].

    That is along the gaps, on average over `held`, of which P was not made. gram [d, d] measures
    lengths. Infinite costs where P takes nothing of them.
    """
    flat, means = gaps.flatten(0, 1), held.forget.means.flatten(0, 1)
    energy = (flat @ gram * flat).sum().clamp_min(TINY)
    along = float((flat @ gram * (means @ change.T)).sum() / energy)
    if along <= 0:
        return Setting(weight, 0.0, math.inf, math.inf)
    strength, squared = (1 - left) / along, change.T @ gram @ change
    lost = float(torch.trace(squared @ held.forget.moment()) * len(flat) / energy)
    middle = held.retain.means.mean(0)
    variation = held.retain.moment() - middle.T @ middle / len(middle)
    moved = float(torch.trace(squared @ held.retain.moment()) / torch.trace(gram @ variation))
    return Setting(
        weight, strength, moved * strength**2, max(0.0, lost * strength**2 - (1 - left) ** 2)
    )


def searched(fit: Heard, held: Heard, gram: Tensor, left: float) -> Setting:
    """Of WEIGHTS the one that costs least with a share `left` of the gaps; ValueError if none does.

    It is judged on what no P was made of. The search goes up from the least weight, which moves the
    retained least for what it takes, and stops once a greater one costs more.
    """
    best = Setting(0.0, 0.0, math.inf, math.inf)
    for weight in WEIGHTS:
        change = least_squares(fit, weight)
        tried = setting_of(held, fit.gaps, change, gram, left, weight)
        if tried.cost > best.cost:
            break
        best = tried
    if best.cost == math.inf:
        raise ValueError("Nothing tells the forget set from the retain set; name other concepts.")
    return best


def lost_of_groups(held: Heard, gaps: Tensor, change: Tensor, gram: Tensor) -> Tensor:
    """The share [g] of its gaps [g, p, d] that each group loses to P [d, d], along them."""
    energies = (gaps @ gram * gaps).sum((1, 2)).clamp_min(TINY)
    return (gaps @ gram * (held.forget.means @ change.T)).sum((1, 2)) / energies


def evened(
    heard: Heard, held: Heard, cut: Projection, gram: Tensor, setting: Setting, left: float
) -> Projection:
    """The P of `least_squares`, within what `cut` takes away, that leaves each group that share.

    The strength of a setting leaves it on average. Here more is asked of groups of which `held`
    loses less, and less of the others, until all lose alike; groups that hardly differ may not
    within the rounds that there are.
    """
    asked = torch.full((len(heard.forget.means),), setting.strength).double()
    for _ in range(ROUNDS):
        right = cut.left.T @ least_squares(heard, setting.weight, asked)
        lost = lost_of_groups(held, heard.gaps, cut.left @ right, gram)
        if float((lost - (1 - left)).abs().max()) < EVEN:
            break
        faster = ((1 - left) / lost.clamp_min(TINY)).clamp(1 / FASTEST, FASTEST)
        asked = (asked * faster).clamp_max(MOST)
    return Projection(cut.left, right)


def left_of_groups(heard: Heard, change: Tensor, gram: Tensor) -> Tensor:
    """What the means of each forget group keep of their gaps, squared [g], if they lose P of it."""
    gaps = heard.gaps
    rest = gaps - heard.forget.means @ change.T
    left, whole = ((part @ gram * part).sum((1, 2)) for part in (rest, gaps))
    return left / whole.clamp_min(TINY)


def of_rank(change: Tensor, heard: Heard, rank: int) -> Projection:
    """The matrix of at most this rank that is nearest to P [d, d] on the inputs of both sets."""
    moment = heard.forget.moment() + heard.retain.moment()
    ridge = RIDGE * moment.diagonal().mean().clamp_min(TINY)
    root = torch.linalg.cholesky(moment + ridge * torch.eye(len(moment)).double())
    axes = torch.linalg.svd(change @ root)[0][:, :rank]
    return Projection(axes, axes.T @ change)
