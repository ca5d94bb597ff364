"""Drawing pictures from a pipeline, one seed per picture."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from erase.catalogue import Sampling

CHUNK = 16


def draw(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    output_type: Literal["pt", "latent"] = "pt",
    description: str = "drawing",
) -> Tensor:
    """Draw one picture a prompt: [N, 3, H, W] in 0..1, or latents [N, C, h, w]; on the CPU.

    Picture i starts from the noise of seed i alone, whatever else is drawn. A safety checker is
    set aside meanwhile: what is drawn is to be measured, not shown.
    """
    drawn = []
    with _bare(pipeline), tqdm(total=len(prompts), desc=description, unit="picture") as bar:
        for start in range(0, len(prompts), CHUNK):
            part = slice(start, start + CHUNK)
            pictures = pipeline(
                list(prompts[part]),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                output_type=output_type,
            ).images
            drawn.append(pictures.cpu())
            bar.update(len(pictures))
    return torch.cat(drawn)


@contextmanager
def _bare(pipeline: DiffusionPipeline) -> Iterator[None]:
    """The pipeline without bars, and without a filter that would blacken what is to be judged."""
    bar = getattr(pipeline, "_progress_bar_config", {})
    checker = getattr(pipeline, "safety_checker", None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.safety_checker = None
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**bar)
        pipeline.safety_checker = checker
