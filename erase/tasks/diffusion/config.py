"""Which parts of a pipeline may change, and what training is to draw first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from erase.models.family import Family
from erase.prompts.catalogue import Sampling
from erase.support.config import Config, NotNegative, Positive

MOST_TRAJECTORIES = 64
MOST_GENERATION_STEPS = 15  # by default: what is learned from need not be as fine as what is shown


@dataclass(frozen=True)
class DiffusionTaskConfig(Config):
    """Which components may change, and the pictures the base draws of either set.

    Args:
        components: some of the parts that may change: "unet" or "transformer", "text_encoder" and
            "text_encoder_2". By default all that the pipeline's family has.
        include: shell patterns of the tensors that may change, as in "*attn2*" or "*". By default
            training changes what reads the text, such as the UNet's cross-attention and the whole
            text encoder, and closed forms what they name.
        exclude: patterns of those among them that may not.
        forget_pictures: how many pictures of the forget set the base draws to train on.
        forget_folder: a folder of pictures of the concept to take instead of drawn ones; the
            forget prompts are their captions, in turn.
        retain_pictures: how many of the retain set.
        generation_steps: sampling steps of each of these pictures; 0 for as many as the model asks,
            but 15 at most.
        size: pixels of a side of all pictures; 0 for as many as the model draws by itself.
        batch_size: samples of either set in a training step.
        adversary_steps: robust training. So many gradient steps look for words before the prompts
            that bring the concept back, and the model learns to forget after these words too. Each
            costs as much as a training step. 0 trains on the prompts alone.
        adversary_reach: how far all those steps together move the words' vectors, in standard
            deviations of the vocabulary's numbers.
    """

    components: Sequence[str] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    forget_pictures: Positive[int] = 32
    forget_folder: str = ""
    retain_pictures: Positive[int] = 96
    generation_steps: NotNegative[int] = 0
    size: NotNegative[int] = 0
    batch_size: Positive[int] = 8
    adversary_steps: NotNegative[int] = 0
    adversary_reach: Positive[float] = 20.0

    def sampling(self, known: Sampling) -> Sampling:
        """How these pictures are drawn of a model that is sampled as is known."""
        steps = self.generation_steps or min(known.steps, MOST_GENERATION_STEPS)
        return replace(known, steps=steps, size=self.size or known.size)

    def require_serves(self, family: Family) -> None:
        """ValueError for what the family's pipelines cannot do."""
        if strange := [name for name in self.components if name not in family.components]:
            raise ValueError(
                f"The components name {', '.join(strange)}, which may not change in a pipeline of "
                f"family {family.name}; name some of {', '.join(family.components)}."
            )
        if self.adversary_steps and not family.encoders:
            raise ValueError(
                f"adversary_steps is {self.adversary_steps}, but a pipeline of family "
                f"{family.name} has no text encoder that may change, in whose words an adversary "
                "could speak; leave it at 0."
            )
