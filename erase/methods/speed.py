"""SPEED: an edit of what reads the text in the null space of the retained that it would move."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Literal

import torch
from scipy.linalg import eigh
from torch import Tensor

from erase.core.delta import Delta, LowRankDelta, truncate_delta
from erase.core.seeds import seeded
from erase.core.subspace import Subspace, gram, subspace_of
from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.methods.uce import UCEConfig, editing_tokens, exact, retained_tokens
from erase.support.config import Config, NotNegative, Positive
from erase.tasks.diffusion.places import TEXT
from erase.tasks.diffusion.task import DiffusionTask

NOISE, ROUNDS, NOTHING = 1e-14, 100, 1e-9


@dataclass(frozen=True)
class SPEEDConfig(Config):
    """The constrained least-squares problem of SPEED, in units of a token's mean energy.

    Args:
        threshold: directions in which what is retained has less energy than this may change.
        retain_scale: weight of leaving all other inputs alone.
        augment: how many perturbed copies are made of each retained token.
        filter: whether only those retained tokens count which the edit alone moves most.
        centres: how many means of the empty prompt's tokens stay as they are, beside its first.
        rank: largest rank of the edit; what it leaves out is the least of the edit.
        prompts: most prompts of either set to use.
        tokens: which of a prompt's; "last" is its last word's.
    """

    threshold: Positive[float] = 0.3
    retain_scale: Positive[float] = 0.01
    augment: NotNegative[int] = 10
    filter: bool = True
    centres: NotNegative[int] = 3
    rank: Positive[int] = 64
    prompts: Positive[int] = 512
    tokens: Literal["all", "last"] = "all"


@dataclass(frozen=True)
class Problem:
    """What is asked of one place, all [*, d] in units of a token's mean energy.

    tokens, change: forgotten tokens and the way to their anchors, as sums: tokens^T tokens is the
    mean of c c^T, change^T tokens that of (c* - c) c^T. kept: retained tokens, so many that they
    are in float32; fixed: those of the empty prompt that stay as they are.
    """

    tokens: Tensor
    change: Tensor
    kept: Tensor
    fixed: Tensor

    @cached_property
    def alone(self) -> Tensor:
        """X [*, d] of the edit W (A - T) (I + T)^-1 = W change^T X, which spares nothing."""
        inner = self.tokens @ self.tokens.T + torch.eye(len(self.tokens)).double()
        return torch.linalg.solve(inner, self.tokens)

    @cached_property
    def kept_alone(self) -> Tensor:
        """X r of all retained tokens r, as rows."""
        return self.kept.float() @ self.alone.float().T


@register("speed", SPEEDConfig, DiffusionTask, text_alone=lambda _: True)
def speed(task: DiffusionTask, config: SPEEDConfig) -> Erasure:
    """SPEED (Li et al., ICLR 2026; arXiv 2503.07392) of what reads the text.

    W' = W + W (A - T) P (I - M C (C^T P M C)^-1 C^T P) M with M = (T P + s I)^-1, T and A the mean
    c c^T and c* c^T over forget tokens c and anchors' c*, C what stays of the empty prompt, and P
    the projection onto where the retained have less energy than the threshold. Of these count the
    tokens that W (A - T) (I + T)^-1 moves more than their mean, and perturbed copies of them along
    the weight's least singular direction that it moves more than theirs.

    P M is symmetric, so the edit is W D^T X for as many rows X as there are forget tokens: a LoRA
    of that rank, exact unless `rank` cuts it, which leaves what it holds at zero.

    The authors' code takes the last token of each bare name (`--speed.tokens last`,
    `--template '{concept}'`), edits values alone (`--task.include '["*attn2.to_v*"]'`) and counts
    energy absolutely, where we count in the mean energy of a number of a token, which Stable
    Diffusion's have of about 1. Their noise in all directions, projected onto one, is one number
    here; their k-means starts at random, ours at tokens evenly apart. Their threshold and scale
    are .1 and 1 for few concepts, 1e-4 and .05 without the filter for tens; ours were found on
    the bundled model, where keys are edited too and all tokens of prompts are led to the anchor's.

    The recipe has, by weight, `retained_moved`, |dW r| over |W r| of all retained tokens before any
    filter, `filtered_moved`, the same of those that the filter lets count and of their copies, and
    `left_out`, the share of |dW| that the rank costs.
    """
    weights, deltas, moved, filtered, lost = task.editable(), {}, {}, {}, {}
    with torch.no_grad():
        empty = task.readings([""])
    counting, kept = UCEConfig(prompts=config.prompts, tokens=config.tokens), defaultdict(list)
    for site, rows in retained_tokens(task, counting):
        kept[site].append(rows)
    for site, (tokens, wanted) in editing_tokens(task, counting).items():
        unit = tokens.pow(2).mean().sqrt()
        fixed = landmarks(exact(empty[site][0]), config.centres)
        problem = Problem(
            *summed(tokens / unit, (wanted - tokens) / unit),
            torch.cat(kept.pop(site)).cpu().float().div_(unit),
            fixed / unit,
        )
        retained = subspace_of(problem.kept)
        for name in task.sites(TEXT)[site]:
            weight = exact(weights[name].detach())
            up = weight @ problem.change.T
            counted = subspace_of(rows_moved(weight, up, problem, config, task.seed))
            down = null_space_edit(problem, counted, config)
            whole = LowRankDelta(up.float(), down.float())
            deltas[name], lost[name] = cut(whole, config.rank)
            moved[name] = share_moved(weight, deltas[name], retained)
            if config.filter:
                filtered[name] = share_moved(weight, deltas[name], counted)
    recipe = {"retained_moved": moved, "left_out": lost}
    return Erasure(deltas, recipe | ({"filtered_moved": filtered} if filtered else {}))


def summed(tokens: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """At most d rows of tokens and of change for n of them [n, d], as a Problem has them."""
    orthonormal, rows = torch.linalg.qr(tokens / len(tokens) ** 0.5)
    return rows, orthonormal.T @ change / len(tokens) ** 0.5


def landmarks(empty: Tensor, centres: int) -> Tensor:
    """The first of the empty prompt's tokens [t, d], and k-means of the others, as rows."""
    first, rest = empty[:1], empty[1:]
    means = rest[torch.linspace(0, len(rest) - 1, min(centres, len(rest))).long()]
    for _ in range(ROUNDS if len(means) else 0):
        nearest = torch.cdist(rest, means).argmin(1)
        parts = [rest[nearest == i] for i in range(len(means))]
        means = torch.stack([p.mean(0) if len(p) else means[i] for i, p in enumerate(parts)])
    return torch.cat([first, means])


def null_space_edit(problem: Problem, counted: Subspace, config: SPEEDConfig) -> Tensor:
    """The factor down [n, d] of SPEED's change W change^T down of any weight W [o, d].

    counted is what is to stay. Raises ValueError if the threshold, or what stays of the empty
    prompt, lets nothing change.
    """
    scale, held = config.retain_scale, strong_basis(counted, config.threshold)
    if held.shape[1] == len(held):
        raise ValueError(f"threshold {config.threshold} leaves no direction in which a weight may "
                         "change; raise it.")  # fmt: skip
    # Within the free directions, with N = (T + s I)^-1: rows @ N, then N @ fixed.
    rows, fixed = (part - part @ held @ held.T for part in (problem.tokens, problem.fixed))
    inner = rows @ rows.T + scale * torch.eye(len(rows)).double()
    down, fixed = torch.cholesky_solve(rows, torch.linalg.cholesky(inner)), fixed.T
    moved = (fixed - rows.T @ (down @ fixed)) / scale
    noise = NOISE * float(problem.fixed.pow(2).sum()) / scale
    gap = torch.linalg.pinv(fixed.T @ moved, atol=noise, rtol=1e-12, hermitian=True)
    left = down - down @ fixed @ gap @ moved.T
    if left.norm() <= NOTHING * down.norm():
        raise ValueError(f"centres {config.centres} hold all of the empty prompt, and with it all "
                         "of the edit; lower it, or raise threshold.")  # fmt: skip
    return left


def strong_basis(seen: Subspace, energy: float) -> Tensor:
    """Orthonormal directions [d, k], all those in which the mean energy of inputs is greater."""
    moment = (gram(seen.rows.T) if seen.gram is None else seen.gram) / seen.count
    energies, axes = map(torch.from_numpy, eigh(moment.numpy(), subset_by_value=(energy, inf)))
    return axes if seen.gram is not None else seen.rows.T @ axes / (seen.count * energies).sqrt()


def rows_moved(
    weight: Tensor, up: Tensor, problem: Problem, config: SPEEDConfig, seed: int
) -> Tensor:
    """Rows [*, d] with the mean c c^T of those retained tokens c, and copies, that count.

    Those are moved by the edit alone, up @ problem.alone, at least as far as the tokens, or the
    copies, are on average.
    """
    # As long as what up makes of a token, in fewer numbers.
    shorter = torch.linalg.qr(up).R if len(up) > up.shape[1] else up
    kept, read = problem.kept, problem.kept_alone @ shorter.float().T
    far = torch.arange(len(kept))
    if config.filter:
        far = at_least_mean(read.norm(dim=1)).nonzero()[:, 0]
        read = read[far]
    direction = least_axis(weight)
    steps = torch.randn(config.augment, len(far), generator=seeded(seed), dtype=torch.float64)
    along = (shorter @ (problem.alone @ direction)).float()
    # The lengths of every copy, read + step along, without making any.
    squares = read.square().sum(1) + 2 * steps * (read @ along) + steps**2 * (along @ along)
    strong = at_least_mean(squares.clamp_min(0).sqrt())
    steps = steps * strong
    # With its copies a token c counts as times c c^T + c a^T + a c^T + b, with a and b along the
    # direction alone, which is the product of one row with itself, but for some of b.
    roots, sums = (1 + strong.sum(0)).double().sqrt(), steps.sum(0)
    rest = (steps.square().sum() - (sums / roots).square().sum()).clamp_min(0).sqrt()
    scale = ((len(far) + 1) / roots.square().sum()).sqrt()
    rows = kept.new_empty(len(far) + 1, kept.shape[1])  # so many that none are copied twice
    torch.index_select(kept, 0, far, out=rows[:-1])
    rows[-1] = scale * rest * direction
    own, along = (scale * roots).to(kept), (scale * sums / roots).to(kept)
    rows[:-1].mul_(own[:, None]).addr_(along, direction.to(kept))
    return rows


def least_axis(weight: Tensor) -> Tensor:
    """The right singular vector [d] of the least of a weight's [o, d] min(o, d) singular values.

    Of its two signs it has the one in which its largest number is positive.
    """
    wide = len(weight) < weight.shape[1]
    square = gram(weight.T if wide else weight).numpy()
    axis = torch.from_numpy(eigh(square, subset_by_index=(0, 0))[1][:, 0])
    if wide:
        axis = weight.T @ axis
    if axis.norm() <= NOTHING * weight.norm():  # any of those that its rows span
        axis = torch.linalg.svd(weight, full_matrices=False)[2][-1]
    return axis / (axis.norm() * axis[axis.abs().argmax()].sign())


def at_least_mean(sizes: Tensor) -> Tensor:
    """Which are no smaller than their mean."""
    sizes = sizes.double()  # in which the mean of equal ones is not rounded above them
    return sizes >= sizes.mean()


def cut(whole: Delta, rank: int) -> tuple[Delta, float]:
    """The nearest change of at most this rank, and the share of the whole that it leaves out."""
    if (nearest := truncate_delta(whole, rank)) is whole:
        return whole, 0.0
    change = whole.dense()
    lost = (nearest.dense() - change).norm() / change.norm().clamp_min(1e-30)
    return nearest, round(float(lost), 6)


def share_moved(weight: Tensor, change: Delta, kept: Subspace) -> float:
    """|dW r| over |W r|, root mean squares over the inputs r of a subspace."""
    made = change.dense().double()
    if isinstance(change, LowRankDelta):  # as long, in fewer rows
        made = torch.linalg.qr(change.up.double()).R @ change.down.double()
    # What a weight makes of inputs does not cancel out, so float32 will do.
    return share(kept.energy(made), kept.energy(weight.float()))


def share(moved: Tensor, whole: Tensor) -> float:
    """The root of one energy [] over another."""
    return round(float((moved / whole).clamp_min(0).sqrt()), 6)
