"""UCE: one least-squares edit of the weights that read the text itself."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from erase.core.delta import LowRankDelta
from erase.core.subspace import Subspace, SubspaceFitter, eigen, gram
from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.prompts.request import Prompt, sample
from erase.support.config import Config, Positive
from erase.support.progress import Bar
from erase.tasks.diffusion.places import TEXT
from erase.tasks.diffusion.task import DiffusionTask

AT_ONCE = 64  # prompts
NOTHING, NOISE = 1e-9, 1e-13  # a singular value; of the greatest energy


@dataclass(frozen=True)
class UCEConfig(Config):
    """The least-squares problem of UCE.

    Args:
        rank: largest rank of the edit; what it leaves out is the least of the edit.
        preserve_weight: weight of the retained prompts against the forgotten ones.
        regularisation: weight of leaving all other inputs alone, in thousandths of the mean
            energy of the tokens.
        prompts: most prompts of either set to use.
        tokens: which of a prompt's; "last" is its last word's, and the empty prompt has none.
        normalise: whether each set's part is the mean over its tokens, or their sum.
        ridge: "absolute" takes regularisation as it is, whatever the tokens' energy.
    """

    rank: Positive[int] = 64
    preserve_weight: Positive[float] = 1.0
    regularisation: Positive[float] = 1.0
    prompts: Positive[int] = 512
    tokens: Literal["all", "last"] = "all"
    normalise: Literal["means", "sums"] = "means"
    ridge: Literal["relative", "absolute"] = "relative"


PUBLISHED = UCEConfig(4096, 1.0, 0.5, 10_000, "last", "sums", "absolute")


@register("uce", UCEConfig, DiffusionTask, published=PUBLISHED, text_alone=lambda _: True)
def uce(task: DiffusionTask, config: UCEConfig) -> Erasure:
    """Unified concept editing (Gandikota et al., WACV 2024) of what reads the text.

    W' minimises |W' c - W c*|^2 over forget and anchor token embeddings, plus |W' r - W r|^2 over
    retained ones, plus |W' - W|^2; W' - W = W M for one matrix M, which all layers share. That is
    the keys and values of cross-attention, or the one layer through which text enters a
    transformer; whole prompts, where they are read too, count as tokens of a place of their own.

    Eq. 7 and the authors' code, which the preset published follows, take sums where we take means,
    an absolute lambda (.5) for our ridge, and of each name its last token for all the tokens of
    prompts, paired with the anchor's; they retain what is named, we the empty prompt too, and they
    cut no rank. Their default is bare names (`--template '{concept}'`) led to the empty prompt,
    ours templates led to the anchor; they edit cross-attention's keys and values alone.
    """
    read, kept = editing_tokens(task, config), spaces_of(retained_tokens(task, config))
    edits = {
        site: shared_edit(asked_of(*pair), retained(kept[site], config), config)
        for site, pair in read.items()
    }
    return Erasure(edit_deltas(task, edits), {"rank": max(len(down) for _, down in edits.values())})


def editing_tokens(task: DiffusionTask, config: UCEConfig) -> dict[str, tuple[Tensor, Tensor]]:
    """At each place: forget tokens and the anchors' for each [n, d], in float64."""
    forget = at_most(task.prompts.forget, config.prompts, task.seed)
    if config.tokens == "last":
        texts = [p.text for p in forget], [p.anchor for p in forget]
        sources, targets = map(task.last_readings, texts)
        return {site: (exact(sources[site]), exact(targets[site])) for site in sources}
    redirected = task.redirected_readings(forget).items()
    return {site: (exact(tokens), exact(wanted)) for site, (tokens, wanted) in redirected}


def at_most(prompts: Sequence[Prompt], most: int, seed: int) -> list[Prompt]:
    """So many of the prompts, or all."""
    return sample(prompts, min(most, len(prompts)), seed)


@torch.no_grad()
def retained_tokens(task: DiffusionTask, config: UCEConfig) -> Iterator[tuple[str, Tensor]]:
    """Part by part, by place, the tokens of retained prompts that count [m, d], as they are read.

    Of all tokens, those of the empty prompt are among them.
    """
    texts = [p.text for p in at_most(task.prompts.retain, config.prompts, task.seed)]
    last = config.tokens == "last"
    # Guidance reads the empty prompt beside every other.
    for part in in_parts(texts if last else [*texts, ""]):
        read = task.last_readings(part) if last else task.readings(part)
        for site, rows in read.items():
            yield site, rows.flatten(0, -2)


def in_parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts, a few at once, so that what is read of them need not be held."""
    few = len(texts) <= AT_ONCE
    with Bar(total=len(texts), desc="reading prompts", unit="prompt", disable=few) as bar:
        for start in range(0, len(texts), AT_ONCE):
            yield texts[start : start + AT_ONCE]
            bar.update(min(AT_ONCE, len(texts) - start))


def spaces_of(parts: Iterable[tuple[str, Tensor]]) -> dict[str, Subspace]:
    """The second moments of what was read [m, d] at each place."""
    fitters: dict[str, SubspaceFitter] = {}
    for site, rows in parts:
        fitters.setdefault(site, SubspaceFitter(rows.shape[-1])).update(rows)
    return {site: fitter.fit() for site, fitter in fitters.items()}


def exact(readings: Tensor) -> Tensor:
    """In float64, on the CPU."""
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


def retained(kept: Subspace, config: UCEConfig) -> Tensor:
    """What retained tokens K [m, d] add to UCE's normal equations: preserve K^T K / m [d, d]."""
    count = 1 if config.normalise == "means" else kept.count
    return config.preserve_weight * count * kept.moment()


@dataclass(frozen=True)
class Asked:
    """Of `count` tokens c led to c*, the sums of c c^T and of (c* - c) c^T, both [d, d]."""

    moment: Tensor
    change: Tensor
    count: int

    def __add__(self, other: "Asked") -> "Asked":
        """Both."""
        moment, change = self.moment + other.moment, self.change + other.change
        return Asked(moment, change, self.count + other.count)

    def turned(self, turn: Tensor) -> "Asked":
        """The same of the tokens Q c, led to the c* of c, for a matrix Q [d, d]."""
        moment = turn @ self.moment @ turn.T
        return Asked(moment, (self.change + self.moment) @ turn.T - moment, self.count)


def asked_of(tokens: Tensor, wanted: Tensor) -> Asked:
    """What is asked of tokens and of the anchors' for each, both rows [n, d]."""
    return Asked(gram(tokens), (wanted - tokens).T @ tokens, len(tokens))


def shared_edit(asked: Asked, kept: Tensor, config: UCEConfig) -> tuple[Tensor, Tensor]:
    """Factors (up [d, k], down [k, d]) of the matrix M that solves UCE's normal equations.

    M (C^T C / n + kept + ridge I) = (C* - C)^T C / n, with rows as samples, what `retained` tokens
    add [d, d], and the ridge `regularisation` thousandths of the mean diagonal of what it is added
    to, unless it is absolute; of sums n is 1.
    """
    forgotten = asked.count if config.normalise == "means" else 1
    normal = asked.moment / forgotten + kept
    ridge = torch.tensor(config.regularisation, dtype=normal.dtype)
    if config.ridge == "relative":
        ridge = ridge * normal.diagonal().mean() * 1e-3
    normal = normal + ridge * torch.eye(len(normal), dtype=normal.dtype)
    edit = torch.linalg.solve(normal, asked.change / forgotten, left=False)
    return factors(edit, config.rank)


def factors(edit: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Up [d, k] and down [k, d] of the edit [d, d], with k at most so many."""
    energies, axes = eigen_fast(gram(edit))
    kept = axes[:, energies > max(NOTHING**2, NOISE * float(energies[-1]))][:, -most:].flip(1)
    return edit @ kept, kept.T


def eigen_fast(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """As `eigen`, by NumPy's LAPACK, which takes about half the time that torch's does."""
    try:
        energies, axes = np.linalg.eigh(matrix.numpy())
    except np.linalg.LinAlgError:
        return eigen(matrix)
    return torch.from_numpy(energies), torch.from_numpy(axes)
