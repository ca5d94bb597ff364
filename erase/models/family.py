"""What is particular to each architecture: where text enters, how latents and time are told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from erase.models.tokens import padded_tokens, pairing
from erase.prompts.catalogue import Sampling

SD3_T5_TOKENS = 256
STATES, POOLED = "text", "pooled"


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


@dataclass(frozen=True)
class Family:
    """One architecture of text-to-image pipelines; an entry of FAMILIES makes a new one known.

    Args:
        name: ours.
        pipeline: the stock class.
        denoiser: the component that predicts noise, velocity or flow.
        encoders: the text encoders that may change. T5 may not: no LoRA loader reads it.
        reads_text: patterns of what training changes by default.
        enters: by place, patterns of the weights that read the text itself there.
        keys_and_values: patterns of what makes attention's keys and values of text.
        attention: patterns of all that attention to text is made of.
        encode: a Condition of prompts for pictures so many pixels wide.
        denoise: the denoiser's output [N, C, h, w] for latents at time steps [N].
        tokens: for each token of each text, the position of its anchor's that stands for it.
        sampling: how such models are sampled by default.
        unpacked: latents [N, C, h, w] of those that the pipeline draws, w pixels wide.
        guided: whether it is sampled by classifier-free guidance.
        drawing: options to draw with.
    """

    name: str
    pipeline: type[DiffusionPipeline]
    denoiser: str
    encoders: Sequence[str]
    reads_text: Sequence[str]
    enters: Mapping[str, Sequence[str]]
    keys_and_values: Sequence[str]
    attention: Sequence[str]
    encode: Callable[[DiffusionPipeline, Sequence[str], int], Condition]
    denoise: Callable[[DiffusionPipeline, Tensor, Tensor, Condition], Tensor]
    tokens: Callable[[DiffusionPipeline, Sequence[str], Sequence[str]], Tensor]
    sampling: Sampling = field(default_factory=Sampling)
    unpacked: Callable[[DiffusionPipeline, Tensor, int], Tensor] = lambda _, latents, __: latents
    guided: bool = True
    drawing: Mapping[str, object] = field(default_factory=dict)

    @property
    def components(self) -> tuple[str, ...]:
        """All that may change."""
        return (self.denoiser, *self.encoders)

    @property
    def loads_lora(self) -> bool:
        """Whether the stock pipeline loads LoRA files."""
        return hasattr(self.pipeline, "load_lora_weights")

    def side(self, pipeline: DiffusionPipeline, size: int = 0) -> int:
        """How many pixels wide a picture is: `size`, or 0 for what the pipeline draws by itself."""
        if size:
            return size
        known = getattr(getattr(pipeline, self.denoiser).config, "sample_size", None)
        return (known or pipeline.default_sample_size) * pipeline.vae_scale_factor


def with_components(
    pipeline: DiffusionPipeline,
    components: Mapping[str, nn.Module | None],
    kind: type[DiffusionPipeline] | None = None,
) -> DiffusionPipeline:
    """A second pipeline with the same options around the same components but these.

    It is of the same class, unless `kind` is another that takes the same.
    """
    options = {
        key: pipeline.config[key]
        for key in pipeline._get_signature_keys(pipeline)[1]
        if key in pipeline.config
    }
    if "safety_checker" in components:
        options["requires_safety_checker"] = components["safety_checker"] is not None
    return (kind or type(pipeline))(**{**pipeline.components, **options, **components})


def _tokens(tokenizer: str, length: int | None = None) -> Callable[..., Tensor]:
    """What pairs the tokens of one tokenizer, `length` of each text."""
    return lambda p, texts, anchors: pairing(getattr(p, tokenizer), texts, anchors, length)


def _encode_sd(pipeline: DiffusionPipeline, prompts: Sequence[str], side: int) -> Condition:
    tokens = padded_tokens(pipeline.tokenizer, prompts)
    return Condition(pipeline.text_encoder(tokens.to(pipeline.text_encoder.device))[0])


def _denoise_sd(p: DiffusionPipeline, latents: Tensor, steps: Tensor, text: Condition) -> Tensor:
    return p.unet(latents, steps, text.states).sample


def _encode_sdxl(pipeline: DiffusionPipeline, prompts: Sequence[str], side: int) -> Condition:
    device = pipeline.unet.device
    states, _, pooled, _ = pipeline.encode_prompt(
        list(prompts), device=device, do_classifier_free_guidance=False
    )
    if pipeline.config.force_zeros_for_empty_prompt:  # as guidance does
        said = torch.tensor([bool(prompt) for prompt in prompts], device=device)
        states, pooled = states * said[:, None, None], pooled * said[:, None]
    sizes = pooled.new_tensor([side, side, 0, 0, side, side]).repeat(len(pooled), 1)
    told = pipeline.unet.add_time_proj(sizes.flatten()).to(pooled).view(len(pooled), -1)
    others = {"text_embeds": pooled, "time_ids": sizes}
    return Condition(states, torch.cat([pooled, told], 1), others)


def _denoise_sdxl(p: DiffusionPipeline, latents: Tensor, steps: Tensor, text: Condition) -> Tensor:
    return p.unet(latents, steps, text.states, added_cond_kwargs=dict(text.others)).sample


def _encode_sd3(pipeline: DiffusionPipeline, prompts: Sequence[str], side: int) -> Condition:
    texts = list(prompts)
    states, _, pooled, _ = pipeline.encode_prompt(
        texts, texts, texts, pipeline.transformer.device, do_classifier_free_guidance=False
    )
    return Condition(states, pooled)


def _denoise_sd3(p: DiffusionPipeline, latents: Tensor, steps: Tensor, text: Condition) -> Tensor:
    return p.transformer(latents, text.states, text.pooled, steps).sample


def _tokens_sd3(p: DiffusionPipeline, texts: Sequence[str], anchors: Sequence[str]) -> Tensor:
    clip, length = pairing(p.tokenizer, texts, anchors), SD3_T5_TOKENS
    if p.text_encoder_3 is None:  # its tokens are all zero then
        t5 = torch.arange(length).expand(len(clip), -1)
    else:
        t5 = pairing(p.tokenizer_3, texts, anchors, length)
    return torch.cat([clip, clip.shape[1] + t5], 1)


def _encode_flux(pipeline: DiffusionPipeline, prompts: Sequence[str], side: int) -> Condition:
    states, pooled, _ = pipeline.encode_prompt(list(prompts), None, pipeline.transformer.device)
    return Condition(states, pooled)


def _denoise_flux(p: DiffusionPipeline, latents: Tensor, steps: Tensor, text: Condition) -> Tensor:
    count, channels, height, width = latents.shape
    packed = p._pack_latents(latents, count, channels, height, width)
    places = p._prepare_latent_image_ids(
        count, height // 2, width // 2, latents.device, latents.dtype
    )
    no_places = text.states.new_zeros(text.states.shape[1], 3)
    guidance = latents.new_full((count,), FLUX_GUIDANCE)
    found = p.transformer(
        packed, text.states, text.pooled, steps / 1000, places, no_places,
        guidance if p.transformer.config.guidance_embeds else None,
    ).sample  # fmt: skip
    return _unpacked_flux(p, found, width * p.vae_scale_factor)


def _unpacked_flux(pipeline: DiffusionPipeline, latents: Tensor, side: int) -> Tensor:
    return pipeline._unpack_latents(latents, side, side, pipeline.vae_scale_factor)


def _encode_pixart(pipeline: DiffusionPipeline, prompts: Sequence[str], side: int) -> Condition:
    states, mask, _, _ = pipeline.encode_prompt(
        list(prompts), do_classifier_free_guidance=False, device=pipeline.transformer.device
    )
    # What is masked out is never read.
    return Condition(states * mask[..., None], None, {"encoder_attention_mask": mask})


def _denoise_pixart(
    p: DiffusionPipeline, latents: Tensor, steps: Tensor, text: Condition
) -> Tensor:
    found = p.transformer(
        latents, text.states, timestep=steps, **text.others,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample  # fmt: skip
    return found[:, : latents.shape[1]]  # the rest is a learnt variance


FLUX_GUIDANCE = 3.5
_unet_family = partial(
    Family,
    denoiser="unet",
    reads_text=("unet.*attn2.*", "text_encoder*"),
    keys_and_values=("unet.*attn2.to_k.*", "unet.*attn2.to_v.*"),
    attention=("unet.*attn2.*",),
)
CROSS_ATTENTION = ("unet.*attn2.to_k.weight", "unet.*attn2.to_v.weight")
_joint_family = partial(
    Family,
    denoiser="transformer",
    reads_text=(
        "transformer.*.attn.*add*",
        "transformer.context_embedder.*",
        "transformer.time_text_embed.text_embedder.*",
        "text_encoder*",
    ),
    enters={
        STATES: ("transformer.context_embedder.weight",),
        POOLED: ("transformer.time_text_embed.text_embedder.linear_1.weight",),
    },
    keys_and_values=("transformer.*.attn.add_k_proj.*", "transformer.*.attn.add_v_proj.*"),
    attention=("transformer.*.attn.*add*",),
)
FAMILIES = {
    family.name: family
    for family in (
        _unet_family(
            "sd", StableDiffusionPipeline, encoders=("text_encoder",),
            enters={STATES: CROSS_ATTENTION},
            encode=_encode_sd, denoise=_denoise_sd, tokens=_tokens("tokenizer"),
        ),
        _unet_family(
            "sdxl", StableDiffusionXLPipeline, encoders=("text_encoder", "text_encoder_2"),
            enters={STATES: CROSS_ATTENTION, POOLED: ("unet.add_embedding.linear_1.weight",)},
            encode=_encode_sdxl, denoise=_denoise_sdxl, tokens=_tokens("tokenizer"),
            sampling=Sampling(50, 5.0),
        ),
        _joint_family(
            "sd3", StableDiffusion3Pipeline, encoders=("text_encoder", "text_encoder_2"),
            encode=_encode_sd3, denoise=_denoise_sd3, tokens=_tokens_sd3,
            sampling=Sampling(28, 7.0),
        ),
        _joint_family(
            "flux", FluxPipeline, encoders=("text_encoder",),
            encode=_encode_flux, denoise=_denoise_flux, tokens=_tokens("tokenizer_2", 512),
            sampling=Sampling(28, FLUX_GUIDANCE), unpacked=_unpacked_flux, guided=False,
        ),
        Family(
            "pixart", PixArtSigmaPipeline, "transformer", (),
            reads_text=("transformer.*attn2.*", "transformer.caption_projection.*"),
            enters={STATES: ("transformer.caption_projection.linear_1.weight",)},
            keys_and_values=("transformer.*attn2.to_k.*", "transformer.*attn2.to_v.*"),
            attention=("transformer.*attn2.*",),
            encode=_encode_pixart, denoise=_denoise_pixart, tokens=_tokens("tokenizer", 300),
            sampling=Sampling(20, 4.5),
            drawing={"use_resolution_binning": False, "clean_caption": False},
        ),
    )
}  # fmt: skip


def family_of(pipeline: DiffusionPipeline) -> Family:
    """The family whose stock class the pipeline is, or derives from; ValueError if none is."""
    for family in FAMILIES.values():
        if isinstance(pipeline, family.pipeline):
            return family
    known = ", ".join(family.pipeline.__name__ for family in FAMILIES.values())
    raise ValueError(
        f"The pipeline is a {type(pipeline).__name__}, of no known family; give one of {known}."
    )


def require_supported(pipeline: DiffusionPipeline) -> Family:
    """The pipeline's family; ValueError unless it is known and its weights can be trained."""
    family = family_of(pipeline)
    if pipeline.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"The pipeline is in {pipeline.dtype}; load it in float32 to train it.")
    denoiser = getattr(pipeline, family.denoiser)
    if any(getattr(module, "fused_projections", False) for module in denoiser.modules()):
        raise ValueError(
            "The pipeline's attention is fused, which renames its weights; call "
            "pipeline.unfuse_qkv_projections() first."
        )
    return family
