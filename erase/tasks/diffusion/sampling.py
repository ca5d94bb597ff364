"""Drawing pictures from a pipeline, one seed per picture."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from erase.core.precision import widened
from erase.core.process import own_settings
from erase.core.seeds import seeded
from erase.models.calling import asked_by
from erase.models.coding import one_frame
from erase.models.conditions import shifted
from erase.models.family import family_of
from erase.models.lazy import require_loaded
from erase.models.stock import with_components
from erase.prompts.catalogue import Sampling
from erase.support.distributed import shared_map
from erase.support.progress import Bar

OutputType = Literal["pt", "latent"]
# Of prompts and as many seeds, whose steps a bar may be told.
Drawer = Callable[[Sequence[str], Sequence[int], Bar], Tensor]
MOST_AT_ONCE, LATENTS_AT_ONCE = 32, 8192


@own_settings()
def draw(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    output_type: OutputType = "pt",
    description: str = "drawing",
    shared: bool = False,
) -> Tensor:
    """Draw one picture a prompt: [N, 3, H, W] in 0..1, or latents [N, C, h, w]; on the CPU,
    in at least float32.

    Picture i starts from the noise of seed i alone, whatever else is drawn. A safety checker takes
    no part: what is drawn is to be measured, not shown. `shared` batches are drawn by all processes
    in turn, which then all have every picture; each must call it.
    """
    alone = family_of(pipeline).learned
    drawer = (_one_alone if alone else _some_together)(pipeline, sampling, output_type)
    count = 1 if alone else at_once(pipeline, sampling.size)
    with Bar(total=sampling.steps * len(prompts), desc=description, unit="step") as bar:

        def some(start: int) -> Tensor:
            part = slice(start, start + count)
            pictures = drawer(prompts[part], seeds[part], bar)
            # Schedulers of higher order take more steps than they are asked for, some no callback.
            bar.update(sampling.steps * min(start + count, len(prompts)) - bar.n)
            return widened(pictures).cpu()

        starts = range(0, len(prompts), count)
        drawn = shared_map(some, starts) if shared else [some(start) for start in starts]
    return torch.cat(drawn) if drawn else torch.zeros(0)


def _some_together(
    pipeline: DiffusionPipeline, sampling: Sampling, output_type: OutputType
) -> Drawer:
    """What draws pictures of a known family, or their latents, as many as there are prompts."""
    family, unfiltered = family_of(pipeline), without_filter(pipeline)
    require_loaded(getattr(pipeline, family.denoiser))
    side = family.side(pipeline, sampling.size)
    heard = "callback_on_step_end" in asked_by(pipeline)

    def drawn(prompts: Sequence[str], seeds: Sequence[int], bar: Bar) -> Tensor:
        pictures = unfiltered(
            list(prompts),
            generator=[seeded(seed) for seed in seeds],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            output_type=output_type,
            height=side,
            width=side,
            **family.drawing,
            **({"callback_on_step_end": partial(_tick, bar)} if heard else {}),
        ).images
        return family.unpacked(pipeline, pictures, side) if output_type == "latent" else pictures

    return drawn


def _one_alone(pipeline: DiffusionPipeline, sampling: Sampling, output_type: OutputType) -> Drawer:
    """What draws one picture of a learned family, of a film its middle frame, or its latents.

    Each is drawn alone, for what a prompt is given may hang on its neighbours' lengths.
    """
    known = family_of(pipeline).learned
    assert known
    output = "np" if output_type == "pt" else ""  # the only one that is in 0..1 in all classes
    listener = known.calling.drawer(pipeline, sampling, output)

    @torch.no_grad()
    def drawn(prompts: Sequence[str], seeds: Sequence[int], _: Bar) -> Tensor:
        (prompt,), (seed,) = prompts, seeds
        draw = listener.draw(prompt, seed)
        return one_frame(draw.output) if output else draw.result

    return drawn


def _tick(
    bar: Bar, pipeline: DiffusionPipeline, step: int, timestep: int, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    # Whoever is told may break off at any step, not only after a picture.
    bar.update(len(tensors["latents"]))
    return tensors


def at_once(pipeline: DiffusionPipeline, size: int = 0) -> int:
    """How many pictures of a size, by default the pipeline's own, are drawn together."""
    side = family_of(pipeline).side(pipeline, size) // pipeline.vae_scale_factor
    return max(4, min(MOST_AT_ONCE, LATENTS_AT_ONCE // side**2))


def without_filter(
    pipeline: DiffusionPipeline, kind: type[DiffusionPipeline] | None = None
) -> DiffusionPipeline:
    """A second, silent pipeline around the same modules, of the same class unless told another."""
    none: dict[str, nn.Module | None]
    none = {"safety_checker": None} if "safety_checker" in pipeline.components else {}
    bare = with_components(pipeline, none | _told_shift(pipeline), kind)
    bare.set_progress_bar_config(disable=True)
    return bare


def _told_shift(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The VAE with a shift of 0 where it names none, which pipelines that shift cannot add."""
    if family_of(pipeline).unscaled is not shifted or pipeline.vae.config.shift_factor is not None:
        return {}
    vae = copy.copy(pipeline.vae)  # the very same weights under another config
    vae.register_to_config(shift_factor=0.0)
    return {"vae": vae}
