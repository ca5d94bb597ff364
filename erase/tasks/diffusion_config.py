"""Which parts of a pipeline may change, and what training is to draw first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from erase.checks import require_lists, require_positive

Component = Literal["unet", "text_encoder"]


READS_TEXT = ("unet.*attn2.*", "text_encoder.*")
CROSS_ATTENTION = ("unet.*attn2.to_k.weight", "unet.*attn2.to_v.weight")
MOST_TRAJECTORIES = 64
TARGETS = {"cross_attention": "unet", "text_encoder": "text_encoder", "unet": "unet"}


def require_supported(pipeline: DiffusionPipeline) -> None:
    """Raise ValueError unless the pipeline's family is known and its weights can be trained."""
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise ValueError(
            f"The pipeline is a {type(pipeline).__name__}; only Stable Diffusion pipelines with "
            "one text encoder are supported so far, so load one of these."
        )
    if pipeline.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"The pipeline is in {pipeline.dtype}; load it in float32 to train it.")
    if any(getattr(module, "fused_projections", False) for module in pipeline.unet.modules()):
        raise ValueError(
            "The pipeline's attention is fused, which renames its weights; call "
            "pipeline.unfuse_qkv_projections() first."
        )


@dataclass(frozen=True)
class DiffusionTaskConfig:
    """Which components may change, and the pictures the base draws of either set.

    Args:
        components: "unet", "text_encoder" or both.
        include: shell patterns of the tensors that may change, as in "*attn2*" or "*". By default
            training changes what reads the text, the UNet's cross-attention and the whole text
            encoder, and closed forms what they name.
        exclude: patterns of those among them that may not.
        forget_pictures: how many pictures of the forget set the base draws to train on.
        forget_folder: a folder of pictures of the concept to take instead of drawn ones; the
            forget prompts are their captions, in turn.
        retain_pictures: how many of the retain set.
        generation_steps: sampling steps of each of these pictures.
        batch_size: samples of either set in a training step.
        adversary_steps: robust training; so many gradient steps, each as dear as a training step,
            bend what cross-attention reads of every forget prompt back towards the concept before
            the model learns to forget it, wherever it learns on pictures of the concept. 0 trains
            on the prompts as they are.
        adversary_radius: how far they may bend, as a share of the embeddings' norm.
    """

    components: Sequence[Component] = ("unet", "text_encoder")
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    forget_pictures: int = 32
    forget_folder: str = ""
    retain_pictures: int = 96
    generation_steps: int = 15
    batch_size: int = 8
    adversary_steps: int = 0
    adversary_radius: float = 0.3

    def __post_init__(self) -> None:
        if self.adversary_steps < 0:
            raise ValueError(f"adversary_steps is {self.adversary_steps}; give 0 or more.")
        require_lists(self, "components", "include", "exclude")
        require_positive(
            self, "forget_pictures", "retain_pictures", "generation_steps", "batch_size",
            "adversary_radius",
        )  # fmt: skip
        if not self.components:
            raise ValueError("components is empty; name unet, text_encoder or both.")
