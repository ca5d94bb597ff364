"""Balance: one projection for a list of concepts, as weak as its bound on what is left allows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from erase.core.balance import (
    Heard,
    Setting,
    Trial,
    evened,
    least_squares,
    left_of_groups,
    ordered_axes,
    searched,
)
from erase.core.delta import LowRankDelta
from erase.core.precision import widened
from erase.core.projection import Projection
from erase.core.subspace import SubspaceFitter, sum_of_grams
from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.methods.projection import losing
from erase.methods.uce import exact, in_parts
from erase.prompts.request import Prompt
from erase.prompts.request import by_group as groups_of
from erase.support.config import Config, NotNegative, PartShare, Positive
from erase.tasks.diffusion.hearing import hearing
from erase.tasks.diffusion.places import TEXT
from erase.tasks.diffusion.task import DiffusionTask

HELD = 3  # one prompt in so many is held out
EACH, SLACK = 4, 1.05  # directions of a concept to begin with; times what all of P costs


@dataclass(frozen=True)
class BalanceConfig(Config):
    """How much may be left, and what decides it.

    Args:
        left: the share of what tells each of the forgotten from the retained that may be left, on
            prompts held out; less of it moves the retained further.
        strength: times the strength that leaves that share.
        rank: largest rank of the change; a smaller one is taken if it leaves hardly more.
        heard: noised pictures on which the denoiser's answer is derived by each position of what it
            reads, to weigh positions by that; 0 weighs all alike and needs no denoiser.
        samples: most prompts of either set to read.
    """

    left: PartShare = 0.14
    strength: Positive[float] = 1.0
    rank: Positive[int] = 96
    heard: NotNegative[int] = 64
    samples: Positive[int] = 4096


@register("balance", BalanceConfig, DiffusionTask, text_alone=lambda config: not config.heard)
def balance(task: DiffusionTask, config: BalanceConfig) -> Erasure:
    """Make W (I - s P) of every weight that reads the text, for all concepts at once; s is 1.

    P minimises w E |P x - gap|^2 + E |P r|^2, where forgotten tokens x lose what tells the mean of
    their concept from the retained mean at their position, and retained ones r nothing. w is what
    costs least on prompts held out where a share `left` of the gaps is left on average: the
    movement of the retained, and a tenth of how unevenly the forgotten lose it, both squared. Then
    more is asked of some concepts and less of others, until each keeps that share there. Tokens
    count by how much the denoiser's answer hangs on what it reads at their position: the mean
    square of the answer's derivative along random directions, at random times, of noise alone.

    This library's own. It has UCE's least squares (Gandikota et al., WACV 2024), but leads to the
    retained mean, as LEACE does (Belrose et al., NeurIPS 2023), and not to anchors, weighs
    positions, and searches the weight that UCE leaves to the user.

    The recipe has by place what was found, and what each concept's means keep, squared.
    """
    sites = task.sites(TEXT)
    ears = hearing(task, config.heard) if config.heard else {}
    read = {which: _read(task, prompts, ears) for which, prompts in _asked(task, config).items()}
    names = list(groups_of(task.prompts.forget))
    weights, deltas, told = task.editable(), dict[str, LowRankDelta](), {}
    for site, edited in sites.items():
        (forget, forget_held), (retain, retain_held) = (of_set[site] for of_set in read.values())
        fit, held = Heard(forget.fit(), retain.fit()), Heard(forget_held.fit(), retain_held.fit())
        gram = sum_of_grams(widened(weights[name].cpu()) for name in edited)  # lengths alone
        found = searched(fit, Trial(held, fit.gaps, gram, config.left))
        whole = Heard(forget.merge(forget_held).fit(), retain.merge(retain_held).fit())
        trial = Trial(held, whole.gaps, gram, config.left)
        removed, found = _of_fitting_rank(found, trial, whole, config.rank)
        strength = config.strength * found.strength
        deltas |= losing({name: weights[name] for name in edited}, removed, strength)
        lost = Projection(removed.left, strength * removed.right)
        rest = left_of_groups(whole, lost, gram).tolist()
        told[site] = {
            **asdict(found), "strength": strength, "rank": removed.rank,
            "left_by_concept": dict(zip(names, (round(one, 4) for one in rest), strict=True)),
        }  # fmt: skip
    return Erasure(deltas, {"balance": told})


def _asked(task: DiffusionTask, config: BalanceConfig) -> dict[str, list[list[Prompt]]]:
    """The prompts of each forgotten concept, all as many, and those that are retained."""
    groups = list(groups_of(task.prompts.forget).values())
    each = max(1, min(max(map(len, groups)), config.samples // len(groups)))
    even = [[group[i % len(group)] for i in range(each)] for group in groups]
    return {"forget": even, "retain": [_spread(task.prompts.retain, config.samples)]}


def _spread(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """At most so many of the prompts, evenly apart, so that all names have their share."""
    step = max(1.0, len(prompts) / most)
    return [prompts[int(i * step)] for i in range(min(most, len(prompts)))]


@torch.no_grad()
def _read(
    task: DiffusionTask, groups: Sequence[Sequence[Prompt]], ears: Mapping[str, Tensor]
) -> dict[str, list[SubspaceFitter]]:
    """At each place what is read of prompts to learn from, and of those held out.

    Positions are scaled by the roots of their weights `ears` [p]. Guidance reads the empty prompt
    beside every other, so that it is among the retained.
    """
    found: dict[str, list[SubspaceFitter]] = {}
    for place, group in enumerate(groups):
        texts = [*(prompt.text for prompt in group), *([] if group[0].group else [""])]
        for chosen, parts in _parted(texts):
            for site, rows in _readings(task, chosen):
                fitters = found.setdefault(site, [SubspaceFitter(rows.shape[-1]) for _ in range(2)])
                weighed = rows * ears[site].sqrt()[:, None] if site in ears else rows
                for part in parts:
                    fitters[part].update(weighed, str(place))
    return found


def _parted(texts: Sequence[str]) -> list[tuple[Sequence[str], Sequence[int]]]:
    """The texts to learn from, 0, and those held out, 1; a single one is both."""
    if len(texts) == 1:
        return [(texts, (0, 1))]
    learned = [text for i, text in enumerate(texts) if i % HELD != 1]
    return [(learned, (0,)), (texts[1::HELD], (1,))]


def _readings(task: DiffusionTask, texts: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """What is read of the texts at each place, so many at once: [n, p, d], or [n, d]."""
    for part in in_parts(texts):
        for site, rows in task.readings(part).items():
            yield site, exact(task.denoiser.placed(site, rows))


def _of_fitting_rank(
    found: Setting, trial: Trial, whole: Heard, most: int
) -> tuple[Projection, Setting]:
    """P cut to the least of the ranks that double which costs hardly more than all of P does.

    Of every concept it takes alike.
    """
    change = least_squares(whole, found.weight)
    axes, rank = ordered_axes(change, whole)[:, :most], EACH * len(whole.forget.means)
    while True:
        cut = Projection(axes[:, :rank], axes[:, :rank].T @ change)
        tried = trial.setting(cut.left @ cut.right, found.weight)
        if cut.rank < rank or tried.cost <= SLACK * found.cost:
            break
        rank *= 2
    even = evened(whole, trial, cut, tried)
    return even, trial.setting(even.left @ even.right, found.weight)
