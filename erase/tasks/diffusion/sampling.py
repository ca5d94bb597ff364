"""Drawing pictures from a pipeline, one seed per picture."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from erase.core.precision import widened
from erase.core.process import own_settings
from erase.core.seeds import seeded
from erase.models.family import family_of, with_components
from erase.prompts.catalogue import Sampling
from erase.support.progress import Bar

OutputType = Literal["pt", "latent"]
MOST_AT_ONCE, LATENTS_AT_ONCE = 32, 8192


@own_settings()
def draw(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    output_type: OutputType = "pt",
    description: str = "drawing",
) -> Tensor:
    """Draw one picture a prompt: [N, 3, H, W] in 0..1, or latents [N, C, h, w]; on the CPU,
    in at least float32.

    Picture i starts from the noise of seed i alone, whatever else is drawn. A safety checker takes
    no part: what is drawn is to be measured, not shown.
    """
    unfiltered, family = without_filter(pipeline), family_of(pipeline)
    side = family.side(pipeline, sampling.size)
    count, drawn = at_once(side // pipeline.vae_scale_factor), []
    heard = "callback_on_step_end" in inspect.signature(pipeline.__call__).parameters
    with Bar(total=sampling.steps * len(prompts), desc=description, unit="step") as bar:
        for start in range(0, len(prompts), count):
            part = slice(start, start + count)
            pictures = unfiltered(
                list(prompts[part]),
                generator=[seeded(seed) for seed in seeds[part]],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                output_type=output_type,
                height=side,
                width=side,
                **family.drawing,
                **({"callback_on_step_end": partial(_tick, bar)} if heard else {}),
            ).images
            if output_type == "latent":
                pictures = family.unpacked(pipeline, pictures, side)
            drawn.append(widened(pictures).cpu())
            # Schedulers of higher order take more steps than they are asked for, some no callback.
            bar.update(sampling.steps * min(start + count, len(prompts)) - bar.n)
    return torch.cat(drawn) if drawn else torch.zeros(0)


def _tick(
    bar: Bar, pipeline: DiffusionPipeline, step: int, timestep: int, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    # Whoever is told may break off at any step, not only after a picture.
    bar.update(len(tensors["latents"]))
    return tensors


def at_once(side: int) -> int:
    """How many pictures to draw together: fewer of large ones. `side` is their latents'."""
    return max(4, min(MOST_AT_ONCE, LATENTS_AT_ONCE // side**2))


def without_filter(
    pipeline: DiffusionPipeline, kind: type[DiffusionPipeline] | None = None
) -> DiffusionPipeline:
    """A second, silent pipeline around the same modules, of the same class unless told another."""
    none = {"safety_checker": None} if "safety_checker" in pipeline.components else {}
    bare = with_components(pipeline, none, kind)
    bare.set_progress_bar_config(disable=True)
    return bare
