"""Drawing pictures from a pipeline, one seed per picture."""

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from erase.catalogue import Sampling

MOST_AT_ONCE, LATENTS_AT_ONCE = 32, 8192


def draw(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    output_type: Literal["pt", "latent"] = "pt",
    description: str = "drawing",
) -> Tensor:
    """Draw one picture a prompt: [N, 3, H, W] in 0..1, or latents [N, C, h, w]; on the CPU.

    Picture i starts from the noise of seed i alone, whatever else is drawn. A safety checker takes
    no part: what is drawn is to be measured, not shown.
    """
    unfiltered = _without_filter(pipeline)
    drawn = []
    with tqdm(total=len(prompts), desc=description, unit="picture") as bar:
        for start in range(0, len(prompts), at_once(pipeline)):
            part = slice(start, start + at_once(pipeline))
            pictures = unfiltered(
                list(prompts[part]),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                output_type=output_type,
            ).images
            drawn.append(pictures.cpu())
            bar.update(len(pictures))
    return torch.cat(drawn)


def at_once(pipeline: DiffusionPipeline) -> int:
    """How many pictures to draw together: fewer of large ones."""
    return max(4, min(MOST_AT_ONCE, LATENTS_AT_ONCE // pipeline.unet.config.sample_size**2))


def _without_filter(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """A second, silent pipeline around the same modules."""
    components = dict(pipeline.components)
    if "safety_checker" in components:
        components |= {"safety_checker": None, "requires_safety_checker": False}
    bare = type(pipeline)(**components)
    bare.set_progress_bar_config(disable=True)
    return bare
