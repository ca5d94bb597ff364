"""Which parts of a pipeline may change, and what training is to draw first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import Literal

from erase.models.family import CROSS_ATTENTION, STATES, Family
from erase.prompts.catalogue import Sampling
from erase.prompts.names import SIGN
from erase.support.config import Config, NotNegative, Positive, Share
from erase.tasks.diffusion.adversaries import ADVERSARIES, AdversaryName
from erase.tasks.diffusion.adversaries.base import Adversary, Asked
from erase.tasks.diffusion.denoiser import ConditionedDenoiser

MOST_TRAJECTORIES = 64
USUAL_FORGET = 32
USUAL_STEPS = 4  # of an adversary
MOST_GENERATION_STEPS = 15  # by default: what is learned from need not be as fine as what is shown


@dataclass(frozen=True)
class DiffusionTaskConfig(Config):
    """Which components may change, and the pictures the base draws of either set.

    Args:
        components: which parts may change, as "unet", "text_encoder". By default all that the
            pipeline's family has.
        include: patterns of the tensors that may change, as "*attn2*". By default training changes
            what reads the text, such as the UNet's cross-attention and the whole text encoder, and
            closed forms what they name.
        exclude: patterns of those among them that may not.
        forget_pictures: how many pictures of the forget set the base draws to train on; 0 for 32
            times the root of the number of concepts.
        forget_folder: pictures of the concept to take instead. Forget prompts are their captions,
            in turn.
        retain_pictures: how many of the retain set.
        generation_steps: sampling steps of each; 0 for the model's own. Those are 15 at most.
        size: pixels of a side; 0 for as many as the model draws by itself.
        batch_size: samples of either set in a training step.
        adversary: robust training. At each step an adversary looks for what brings the concept
            back, and the model learns to forget under it too: "prefix" for words before the
            prompts, "word" for one in the concept's place, "states" for a shift of what the
            denoiser reads of them, for frozen text encoders too. "target" moves the answer that is
            learnt off what a word in the concept's place draws.
        adversary_steps: so many gradient steps look for it. Each costs as much as a training step.
            0 for 4, or for no adversary if none is named; given alone, it is "prefix" that looks.
        adversary_reach: how far they move what is found; 0 for the adversary's own. In standard
            deviations of the vocabulary's numbers, or the states'.
        relearning: robust training against finetuning. What is learnt of a step is learnt of the
            model too that 1 to so many steps of relearning make of it. Each costs a pass forward
            and back, and the second learning as much as the first.
        relearning_rate: how far each of these steps moves every tensor. Root mean square; ten steps
            of an attacker's AdamW at 1e-4 move it 1e-3 at most.
        keep: prompts of which no training step may change what is read. Such as those of earlier
            requests; on the command line `@FILE` too, a prompt a line, and `@FOLDER` for all that
            an erasure was asked to change and to keep.
        keep_energy: the share that is held of what is read of them. In as few directions as can be.
    """

    components: Sequence[str] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    forget_pictures: NotNegative[int] = 0
    forget_folder: str = ""
    retain_pictures: Positive[int] = 96
    generation_steps: NotNegative[int] = 0
    size: NotNegative[int] = 0
    batch_size: Positive[int] = 8
    adversary: Literal[AdversaryName, "none"] = "none"
    adversary_steps: NotNegative[int] = 0
    adversary_reach: NotNegative[float] = 0.0
    relearning: NotNegative[int] = 0
    relearning_rate: Positive[float] = 1e-3
    keep: Sequence[str] = ()
    keep_energy: Share = 0.99

    @property
    def adversary_name(self) -> AdversaryName | None:
        """What trains against the model, if anything does."""
        if self.adversary != "none":
            return self.adversary
        return "prefix" if self.adversary_steps else None

    @property
    def adversary_kind(self) -> type[Adversary] | None:
        """Its class."""
        return ADVERSARIES[self.adversary_name] if self.adversary_name else None

    def of_list(self, count: int) -> "DiffusionTaskConfig":
        """The same of so many concepts."""
        usual = ceil(USUAL_FORGET * sqrt(count))
        return replace(self, forget_pictures=self.forget_pictures or usual)

    def adversary_of(
        self, denoiser: ConditionedDenoiser, asked: Asked | None = None
    ) -> Adversary | None:
        """The same, of a model, and of the one whose answers it learns, if that is another."""
        if (kind := self.adversary_kind) is None:
            return None
        steps, reach = self.adversary_steps or USUAL_STEPS, self.adversary_reach
        return kind(denoiser, steps, reach or kind.usual_reach, asked)

    def sampling(self, known: Sampling) -> Sampling:
        """How these pictures are drawn of a model that is sampled as is known."""
        steps = self.generation_steps or min(known.steps, MOST_GENERATION_STEPS)
        return replace(known, steps=steps, size=self.size or known.size)

    def require_serves(self, family: Family) -> None:
        """ValueError for what the family's pipelines cannot do."""
        if strange := [name for name in self.components if name not in family.changeable]:
            unreached = " (its call hands on no gradients to it)" if family.learned else ""
            raise ValueError(
                f"The components name {', '.join(strange)}, which may not change in a pipeline of "
                f"family {family.name}{unreached}; name some of {', '.join(family.changeable)}."
            )
        if (kind := self.adversary_kind) and (why := kind.hindrance(family)):
            others = [name for name, other in ADVERSARIES.items() if not other.hindrance(family)]
            mend = "".join(f"take --task.adversary {name}, or " for name in others)
            raise ValueError(
                f"The adversary {self.adversary_name} cannot serve a pipeline of family "
                f"{family.name}: {why}; {mend}leave --task.adversary and adversary_steps out."
            )
        if self.keep and family.enters.get(STATES) != CROSS_ATTENTION:
            raise ValueError(
                f"Pipelines of family {family.name} read text by more than keys and values of "
                "cross-attention, so that holding these keeps nothing; leave --task.keep out."
            )
        if files := [text for text in self.keep if text.startswith(SIGN)]:
            raise ValueError(f"{files[0]:.80} would be prompts in a file, which only the command "
                             "line and kept_prompts read; give the prompts.")  # fmt: skip
