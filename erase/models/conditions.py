"""What denoisers are given of prompts, size and guidance: what their pipeline's call hands them."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from erase.core.seeds import seeded
from erase.models.calling import STEPS
from erase.models.listening import HeardEnoughError, overridden, replaced, silent

STATES_OF, POOLED_OF, MASK_OF = (
    "encoder_hidden_states", "pooled_projections", "encoder_attention_mask",
)  # fmt: skip
SHARED = ("img_ids", "txt_ids")  # places in the picture and in the text, the same for all prompts


@dataclass(frozen=True)
class Condition:
    """What the denoiser reads of N prompts: states [N, tokens, width], and whatever else it asks.

    pooled: what the layer that reads whole prompts is given [N, width], where there is one.
    others: the denoiser's other arguments but latents and time, by name.
    """

    states: Tensor
    pooled: Tensor | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    def rows(self, chosen: Tensor) -> "Condition":
        """The same of the prompts at these places [n]."""

        def taken(name: str, leaf: Any) -> Any:
            return leaf[chosen] if isinstance(leaf, Tensor) and name not in SHARED else leaf

        pooled = None if self.pooled is None else self.pooled[chosen]
        return Condition(self.states[chosen], pooled, replaced(dict(self.others), taken))


class _Ear:
    """Stands in for a denoiser: has all that it has, raises what it is given, answers nothing."""

    def __init__(self, denoiser: nn.Module):
        self._denoiser = denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def __call__(self, *args: Any, **given: Any) -> None:
        told = inspect.signature(type(self._denoiser).forward)
        _, *arguments = told.bind(self._denoiser, *args, **given).arguments.items()
        raise HeardEnoughError(dict(arguments))


def condition_of(
    pipeline: DiffusionPipeline,
    kind: type[DiffusionPipeline],
    denoiser: str,
    prompts: Sequence[str],
    **options: Any,
) -> Condition:
    """What a pipeline of a kind hands to its denoiser for the prompts, called with the options.

    The call is broken off before the denoiser, which need not be there. It is the one that the
    kind wraps to compute no gradients, so that a trained text encoder has some.
    """
    call = inspect.unwrap(kind.__call__)
    noise, ear = seeded(0), _Ear(getattr(pipeline, denoiser))
    try:
        with silent(pipeline), overridden(pipeline, denoiser, ear):
            call(pipeline, list(prompts), generator=noise, num_inference_steps=STEPS, **options)
    except HeardEnoughError as heard:
        return _read_of(pipeline, prompts, heard.args[0])
    raise ValueError(f"A {kind.__name__} drew without its {denoiser}; open a stock pipeline.")


def _read_of(
    pipeline: DiffusionPipeline, prompts: Sequence[str], given: dict[str, Any]
) -> Condition:
    """The Condition of what was heard, as guidance has it where a prompt is empty."""
    latents = next(iter(given))
    states, others = given[STATES_OF], {**given}
    for name in (latents, "timestep", STATES_OF):
        del others[name]
    if others.get(MASK_OF) is not None:  # what is masked out is never read
        states = states * others[MASK_OF][..., None]
    pooled = others.get(POOLED_OF)
    if "text_embeds" in (added := others.get("added_cond_kwargs") or {}):
        read = added["text_embeds"]
        if pipeline.config.force_zeros_for_empty_prompt:
            said = torch.tensor([bool(prompt) for prompt in prompts]).to(read.device)
            states, read = states * said[:, None, None], read * said[:, None]
        others["added_cond_kwargs"] = {**added, "text_embeds": read}
        told = pipeline.unet.add_time_proj(added["time_ids"].flatten()).to(read)
        pooled = torch.cat([read, told.view(len(read), -1)], 1)
    return Condition(states, pooled, others)


def denoise(
    pipeline: DiffusionPipeline, denoiser: str, latents: Tensor, steps: Tensor, text: Condition
) -> Tensor:
    """What the denoiser predicts [N, C, h, w] for latents at time steps [N].

    A learnt variance behind it is left out.
    """
    module = getattr(pipeline, denoiser)
    given = {**text.others, STATES_OF: text.states, "timestep": steps}
    found: Tensor = module(latents, **given)[0]
    return found[:, : latents.shape[1]]


def denoise_packed(
    pipeline: DiffusionPipeline, denoiser: str, latents: Tensor, steps: Tensor, text: Condition
) -> Tensor:
    """The same of Flux, whose latents are packed and whose time is the noise's share."""
    count, channels, height, width = latents.shape
    packed = pipeline._pack_latents(latents, count, channels, height, width)
    found = denoise(pipeline, denoiser, packed, steps.to(latents) / 1000, text)
    return unpacked(pipeline, found, width * pipeline.vae_scale_factor)


def unpacked(pipeline: DiffusionPipeline, latents: Tensor, side: int) -> Tensor:
    """Flux's packed latents as pictures are, [N, C, h, w]."""
    return pipeline._unpack_latents(latents, side, side, pipeline.vae_scale_factor)


def scaled(pipeline: DiffusionPipeline) -> tuple[float, float]:
    """Mean and deviation of latents that their pipeline scales."""
    return 0.0, 1 / pipeline.vae.config.scaling_factor


def shifted(pipeline: DiffusionPipeline) -> tuple[float, float]:
    """The same of latents that it shifts too, a VAE that names no shift by none."""
    return pipeline.vae.config.shift_factor or 0.0, 1 / pipeline.vae.config.scaling_factor


def by_channel(pipeline: DiffusionPipeline) -> tuple[Tensor | float, Tensor | float]:
    """The same, of each channel [C, 1, 1] if the VAE says so."""
    vae = pipeline.vae
    known = [vae.config.get("latents_mean"), vae.config.get("latents_std")]
    if None in known:
        return scaled(pipeline)
    mean, deviation = (torch.tensor(part)[:, None, None].to(vae.device) for part in known)
    return mean, deviation / vae.config.scaling_factor
