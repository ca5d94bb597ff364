"""Projection: what layers read loses the part that is the forget set's alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from erase.core.delta import LowRankDelta
from erase.core.projection import (
    Projection,
    contrastive,
    discriminative,
    leace,
    mean_difference,
    null_space,
    oblique,
)
from erase.core.subspace import Subspace, SubspaceFitter
from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.models.stored import DENOISERS
from erase.support.config import Config, NotNegative, Positive, Share
from erase.support.distributed import all_gather
from erase.tasks.base import ProjectedTask, SetName

Space = Literal["oblique", "leace", "mean_difference", "contrastive", "scaled", "null_space"]
# Rank (0: all) and strength of each space where the config leaves them open.
DEFAULTS = {
    "oblique": (2, 1.25),
    "leace": (1, 1.0),
    "mean_difference": (2, 1.0),
    "contrastive": (4, 1.25),
    "scaled": (0, 1.0),
    "null_space": (32, 1.0),
}


@dataclass(frozen=True)
class ProjectionConfig(Config):
    """Where to project and onto what.

    Args:
        targets: parts of the model, as the task names them; by default the first of the task's.
        space: "oblique" takes out what tells the means of the forget set from the retain set's, so
            that retained inputs move least; "leace" the one axis that tells the two sets' means, as
            LEACE does, after which no linear probe of single inputs beats a constant;
            "mean_difference" the axes of "oblique", orthogonally;
            "contrastive" the readings in which the forget set's energy is largest beside the retain
            set's; "scaled" weighs directions by importance, forget against retain; "null_space"
            takes the forget directions that the retain space lacks.
        forget_alpha: scaled only; how soon a forget direction counts fully.
        retain_alpha: scaled only; how soon a retain direction does.
        rank: most directions to remove at one place for each concept; 0 is the space's own: 2 of
            the means', 4 of contrastive, 32 of null_space, all of scaled. leace has always 1.
        retain_energy: null_space only; share of the retain activations' energy that is kept
            exactly.
        strength: 1 removes, 2 reflects; 0 is the space's own: 1.25 of oblique and contrastive,
            since single inputs exceed the means that tell the sets apart, else 1. Any other than 1
            gives up the theorem of linear guarding: the means no longer coincide, and a linear
            probe may tell the sets again, as it does where inputs are Gaussian.
        samples: most samples of either set to run over; of a denoiser's, 64 prompts at most.
    """

    targets: Sequence[str] = ()
    space: Space = "oblique"
    forget_alpha: Positive[float] = 3.0
    retain_alpha: Positive[float] = 100.0
    rank: NotNegative[int] = 0
    retain_energy: Share = 0.999
    strength: NotNegative[float] = 0.0
    samples: Positive[int] = 1024
    tuned: ClassVar[tuple[str, tuple[float, ...]]] = ("strength", (0.5, 0.75, 1.0, 1.25, 1.5, 2.0))


def _reads_text_alone(config: ProjectionConfig) -> bool:
    return not set(config.targets) & set(DENOISERS)


@register("projection", ProjectionConfig, text_alone=_reads_text_alone)
def projection(task: ProjectedTask, config: ProjectionConfig) -> Erasure:
    """Make W (I - P) of every weight W that reads a place where P takes out what is forgotten.

    Kodge, Saha and Roy (2023) for "scaled", whose formula and alphas are theirs; the other spaces
    share its path. They edit all layers of a classifier (`targets` of "layers"), of up to 10,000
    random patches, and choose the alphas on the test set; by default we edit the last quarter.
    """
    deltas: dict[str, LowRankDelta] = {}
    ranks: dict[str, int] = {}
    weights = task.editable()
    strength = config.strength or DEFAULTS[config.space][1]
    for target, sites in _sites(task, config).items():
        forget, retain = (activation_spaces(task, s, target, config) for s in ("forget", "retain"))
        for site, names in sites.items():
            if site not in forget:  # a layer that the model never runs
                continue
            removed = _space(forget[site], retain[site], config)
            ranks[site] = removed.rank
            _require_rest(removed, site, config)
            if removed.rank:
                edited = {name: weights[name] for name in names}
                deltas |= losing(edited, removed, strength)
    if not deltas:
        raise ValueError(
            f"Nothing tells the forget set from the retain set in the {config.space} space; "
            "choose another space, or lower retain_energy for null_space."
        )
    return Erasure(deltas, {"ranks": ranks, "strength": strength})


def _sites(task: ProjectedTask, config: ProjectionConfig) -> dict[str, dict[str, list[str]]]:
    """The places of every target; ValueError if a weight would be edited twice, or none."""
    if not task.targets:
        raise ValueError(
            f"Projection knows no place where {', '.join(task.components)} reads what is "
            "forgotten; name the denoiser among the components, or choose a trained method."
        )
    targets = {target: task.sites(target) for target in config.targets or task.targets[:1]}
    names = [name for sites in targets.values() for edited in sites.values() for name in edited]
    if len(set(names)) < len(names):
        raise ValueError(f"The targets {', '.join(targets)} share weights; name one of them.")
    if not names:
        raise ValueError(f"No weight of {', '.join(targets)} may change; widen the patterns.")
    return targets


def activation_spaces(
    task: ProjectedTask, which: SetName, target: str, config: ProjectionConfig
) -> dict[str, Subspace]:
    """The space of what each of the target's places reads while the model runs over a set."""
    fitters: dict[str, SubspaceFitter] = {}

    def callback(site: str, rows: Tensor, group: str) -> None:
        fitter = fitters.setdefault(site, SubspaceFitter(rows.shape[-1]))
        fitter.update(rows, group)

    task.record_inputs(which, target, callback, config.samples)
    first, *others = all_gather(fitters)
    for site, fitter in (pair for other in others for pair in other.items()):
        first[site] = first[site].merge(fitter) if site in first else fitter
    return {site: fitter.fit() for site, fitter in first.items()}


def _space(forget: Subspace, retain: Subspace, config: ProjectionConfig) -> Projection:
    groups, _, width = forget.means.shape
    rank = config.rank or DEFAULTS[config.space][0] or width
    match config.space:
        case "oblique":
            return oblique(forget, retain, rank)
        case "leace":
            return leace(forget, retain)
        case "mean_difference":
            return mean_difference(forget, retain, rank)
        case "contrastive":
            return contrastive(forget, retain, min(rank * groups, width))
        case "scaled":
            scaled = discriminative(forget, retain, config.forget_alpha, config.retain_alpha)
            return scaled.truncated(rank * groups)
        case "null_space":
            return null_space(forget, retain.top_energy_basis(config.retain_energy), rank * groups)


def _require_rest(removed: Projection, site: str, config: ProjectionConfig) -> None:
    """ValueError if a projection that takes all of what it finds finds all there is."""
    if removed.rank == len(removed.left) and config.space != "scaled":
        raise ValueError(
            f"What is to be forgotten takes all {removed.rank} directions that {site} has, so that "
            "nothing would be left of any input; name fewer concepts, lower rank, or take balance."
        )


def losing(
    weights: Mapping[str, Tensor], removed: Projection, strength: float
) -> dict[str, LowRankDelta]:
    """The change of every weight that reads one place and loses `strength` times P of it."""
    input_basis, deltas = strength * removed.left.T.float().contiguous(), {}
    for name, weight in weights.items():
        up, down = removed.edit(weight, strength)
        kernel = weight.shape[1:]
        deltas[name] = LowRankDelta(
            up.float().reshape(len(up), -1, *[1] * (len(kernel) - 1)).contiguous(),
            down.float().reshape(-1, *kernel).contiguous(),
            input_basis,
        )
    return deltas
