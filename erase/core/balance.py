"""The linear change of inputs that moves the retained least for what it leaves of the forgotten."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from erase.core.projection import Projection
from erase.core.subspace import Subspace, eigen

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

    @cached_property
    def gaps(self) -> Tensor:
        """What tells each forget group's means from the retained ones [g, p, d]."""
        return self.forget.means - self.retain.means.mean(0)

    @cached_property
    def wanted(self) -> Tensor:
        """The mean gap x^T [d, d] over forgotten inputs x."""
        return _mean_product(self.gaps, self.forget.means)

    def normal(self, weight: float) -> Tensor:
        """The matrix [d, d] of the normal equations of `least_squares`."""
        found = weight * self.forget.moment() + self.retain.moment()
        ridge = RIDGE * found.diagonal().mean().clamp_min(TINY)
        return found + ridge * torch.eye(len(found)).double()


def _mean_product(left: Tensor, right: Tensor) -> Tensor:
    """The mean a b^T [d, d] over groups and positions [g, p, d]."""
    left, right = left.flatten(0, 1), right.flatten(0, 1)
    return left.T @ right / len(left)


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


def least_squares(heard: Heard, weight: float) -> Tensor:
    """The P [d, d] that minimises weight E |P x - gap|^2 + E |P r|^2 + ridge |P|^2.

    x are forgotten inputs, each with its group's gap at its position, r retained ones, so that
    I - P takes each group to the retained mean and leaves the retained where they are.
    """
    return torch.linalg.solve(heard.normal(weight), weight * heard.wanted, left=False)


@dataclass(frozen=True)
class Trial:
    """What judges a P: inputs of which it was not made are to lose all but a share of their gaps.

    That is of gaps [g, p, d], along them, where gram [d, d] measures lengths, and `left` is the
    share.
    """

    held: Heard
    gaps: Tensor
    gram: Tensor
    left: float

    @cached_property
    def energies(self) -> Tensor:
        """The square of each group's gaps [g]."""
        return (self.gaps @ self.gram * self.gaps).sum((1, 2)).clamp_min(TINY)

    @cached_property
    def wanted(self) -> Tensor:
        """The mean gap x^T [d, d] over forgotten inputs x."""
        return _mean_product(self.gaps, self.held.forget.means)

    @cached_property
    def variation(self) -> float:
        """How far retained inputs vary about their means, squared."""
        middle = self.held.retain.means.mean(0)
        about = self.held.retain.moment() - middle.T @ middle / len(middle)
        return float((self.gram * about).sum())

    def setting(self, change: Tensor, weight: float) -> Setting:
        """The strength at which P leaves that share on average; P is `change` [d, d].

        Infinite costs where P takes nothing of them.
        """
        energy = self.energies.sum() / self.gaps.flatten(0, 1).shape[0]
        measured = self.gram @ change
        along = float((measured * self.wanted).sum() / energy)
        if along <= 0:
            return Setting(weight, 0.0, math.inf, math.inf)
        strength, squared = (1 - self.left) / along, change.T @ measured
        lost = float((squared * self.held.forget.moment()).sum() / energy)
        moved = float((squared * self.held.retain.moment()).sum() / self.variation)
        spread = max(0.0, lost * strength**2 - (1 - self.left) ** 2)
        return Setting(weight, strength, moved * strength**2, spread)

    def lost(self, change: Projection) -> Tensor:
        """The share [g] of its gaps that each group loses to P."""
        taken = self.held.forget.means @ change.right.T
        return (self.gaps @ (self.gram @ change.left) * taken).sum((1, 2)) / self.energies


def searched(fit: Heard, trial: Trial) -> Setting:
    """Of WEIGHTS the one that costs least; ValueError if none takes anything.

    The search goes up from the least weight, which moves the retained least for what it takes, and
    stops once a greater one costs more.
    """
    best = Setting(0.0, 0.0, math.inf, math.inf)
    for weight in WEIGHTS:
        tried = trial.setting(least_squares(fit, weight), weight)
        if tried.cost > best.cost:
            break
        best = tried
    if best.cost == math.inf:
        raise ValueError("Nothing tells the forget set from the retain set; name other concepts.")
    return best


def evened(heard: Heard, trial: Trial, cut: Projection, setting: Setting) -> Projection:
    """The P of `least_squares`, within what `cut` takes away, that leaves each group its share.

    The strength of a setting leaves it on average. Here more is asked of groups of which the trial
    loses less, and less of the others, until all lose alike; groups that hardly differ may not
    within the rounds that there are.
    """
    goal = 1 - trial.left
    within, factor = heard.gaps @ cut.left, torch.linalg.cholesky(heard.normal(setting.weight))
    asked = torch.full((len(within),), setting.strength).double()
    for _ in range(ROUNDS):
        wanted = _mean_product(asked[:, None, None] * within, heard.forget.means)
        right = setting.weight * torch.cholesky_solve(wanted.T, factor).T
        lost = trial.lost(Projection(cut.left, right))
        if float((lost - goal).abs().max()) < EVEN:
            break
        faster = (goal / lost.clamp_min(TINY)).clamp(1 / FASTEST, FASTEST)
        asked = (asked * faster).clamp_max(MOST)
    return Projection(cut.left, right)


def left_of_groups(heard: Heard, change: Projection, gram: Tensor) -> Tensor:
    """What the means of each forget group keep of their gaps, squared [g], if they lose P of it."""
    gaps = heard.gaps
    rest = gaps - heard.forget.means @ change.right.T @ change.left.T
    left, whole = ((part @ gram * part).sum((1, 2)) for part in (rest, gaps))
    return left / whole.clamp_min(TINY)


def ordered_axes(change: Tensor, heard: Heard) -> Tensor:
    """Orthonormal directions [d, d] of what P [d, d] takes of the inputs of both sets, most first.

    P cut to the first of them is the matrix of its rank that is nearest to P on these inputs and
    the ridge.
    """
    return eigen(change @ heard.normal(1.0) @ change.T)[1].flip(1)
