"""What denoisers are given of prompts, size and guidance, and how each is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn


@dataclass(frozen=True)
class Condition:
    """What the denoiser reads of N prompts: states [N, tokens, width], and whatever else it asks.

    pooled: what the layer that reads whole prompts is given [N, width], where there is one.
    others: by name, a row a prompt too.
    """

    states: Tensor
    pooled: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, chosen: Tensor) -> "Condition":
        """The same of the prompts at these places [n]."""
        pooled = None if self.pooled is None else self.pooled[chosen]
        others = {name: tensor[chosen] for name, tensor in self.others.items()}
        return Condition(self.states[chosen], pooled, others)


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


def _told_guidance(pipeline: DiffusionPipeline, count: int, scale: float) -> dict[str, Tensor]:
    """What a UNet that was distilled under guidance is told of it, by the name it asks for."""
    unet = pipeline.unet
    if not (width := unet.config.time_cond_proj_dim):
        return {}
    told = pipeline.get_guidance_scale_embedding(torch.full((count,), scale - 1), width)
    return {"timestep_cond": told.to(unet.device, unet.dtype)}


def _device(denoiser: nn.Module) -> torch.device:
    """Where its weights are, as far as they are not left in their files."""
    return next((w.device for w in denoiser.parameters() if not w.is_meta), torch.device("meta"))


def encode_sd(
    pipeline: DiffusionPipeline, prompts: Sequence[str], side: int, guidance: float
) -> Condition:
    """What Stable Diffusion reads."""
    states, _ = pipeline.encode_prompt(list(prompts), pipeline.text_encoder.device, 1, False)
    return Condition(states, None, _told_guidance(pipeline, len(states), guidance))


def denoise_sd(p: DiffusionPipeline, latents: Tensor, steps: Tensor, text: Condition) -> Tensor:
    """What it predicts."""
    return p.unet(latents, steps, text.states, **text.others).sample


def encode_sdxl(
    pipeline: DiffusionPipeline, prompts: Sequence[str], side: int, guidance: float
) -> Condition:
    """What Stable Diffusion XL reads."""
    device = _device(pipeline.unet)
    states, _, pooled, _ = pipeline.encode_prompt(
        list(prompts), device=device, do_classifier_free_guidance=False
    )
    if pipeline.config.force_zeros_for_empty_prompt:  # as guidance does
        said = torch.tensor([bool(prompt) for prompt in prompts]).to(device)
        states, pooled = states * said[:, None, None], pooled * said[:, None]
    sizes = torch.tensor([side, side, 0, 0, side, side]).to(pooled).repeat(len(pooled), 1)
    told = pipeline.unet.add_time_proj(sizes.flatten()).to(pooled).view(len(pooled), -1)
    others = {"text_embeds": pooled, "time_ids": sizes}
    others |= _told_guidance(pipeline, len(states), guidance)
    return Condition(states, torch.cat([pooled, told], 1), others)


def denoise_sdxl(p: DiffusionPipeline, latents: Tensor, steps: Tensor, text: Condition) -> Tensor:
    """What it predicts."""
    guidance = text.others.get("timestep_cond")
    added = dict(text.others)
    return p.unet(
        latents, steps, text.states, timestep_cond=guidance, added_cond_kwargs=added
    ).sample


def encode_sd3(
    pipeline: DiffusionPipeline, prompts: Sequence[str], side: int, guidance: float
) -> Condition:
    """What Stable Diffusion 3 reads."""
    texts = list(prompts)
    states, _, pooled, _ = pipeline.encode_prompt(
        texts, texts, texts, _device(pipeline.transformer), do_classifier_free_guidance=False
    )
    return Condition(states, pooled)


def denoise_sd3(p: DiffusionPipeline, latents: Tensor, steps: Tensor, text: Condition) -> Tensor:
    """What it predicts."""
    return p.transformer(latents, text.states, text.pooled, steps).sample


def encode_flux(
    pipeline: DiffusionPipeline, prompts: Sequence[str], side: int, guidance: float
) -> Condition:
    """What Flux reads."""
    states, pooled, _ = pipeline.encode_prompt(list(prompts), None, _device(pipeline.transformer))
    if not pipeline.transformer.config.guidance_embeds:
        return Condition(states, pooled)
    return Condition(states, pooled, {"guidance": pooled.new_full((len(pooled),), guidance)})


def denoise_flux(p: DiffusionPipeline, latents: Tensor, steps: Tensor, text: Condition) -> Tensor:
    """What it predicts."""
    count, channels, height, width = latents.shape
    packed = p._pack_latents(latents, count, channels, height, width)
    places = p._prepare_latent_image_ids(
        count, height // 2, width // 2, latents.device, latents.dtype
    )
    no_places = text.states.new_zeros(text.states.shape[1], 3)
    found = p.transformer(
        packed, text.states, text.pooled, steps.to(latents) / 1000, places, no_places, **text.others
    ).sample
    return unpacked_flux(p, found, width * p.vae_scale_factor)


def unpacked_flux(pipeline: DiffusionPipeline, latents: Tensor, side: int) -> Tensor:
    """Flux's packed latents as pictures are, [N, C, h, w]."""
    return pipeline._unpack_latents(latents, side, side, pipeline.vae_scale_factor)


def encode_pixart(
    pipeline: DiffusionPipeline, prompts: Sequence[str], side: int, guidance: float
) -> Condition:
    """What PixArt reads."""
    states, mask, _, _ = pipeline.encode_prompt(
        list(prompts), do_classifier_free_guidance=False, device=_device(pipeline.transformer)
    )
    # What is masked out is never read.
    return Condition(states * mask[..., None], None, {"encoder_attention_mask": mask})


def denoise_pixart(p: DiffusionPipeline, latents: Tensor, steps: Tensor, text: Condition) -> Tensor:
    """What it predicts."""
    found = p.transformer(
        latents, text.states, timestep=steps, **text.others,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample  # fmt: skip
    return found[:, : latents.shape[1]]  # the rest is a learnt variance
