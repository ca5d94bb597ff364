"""What is particular to each architecture: where text enters, how latents and time are told."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from torch import Tensor

from erase.core.names import require_in_force
from erase.models.calling import overrides_of, sampling_of
from erase.models.conditions import (
    Condition,
    by_channel,
    denoise,
    denoise_packed,
    scaled,
    shifted,
    unpacked,
)
from erase.models.learned import LearnedFamily, learned
from erase.models.stock import plain_pipeline, text_to_image
from erase.models.tokens import Readers
from erase.prompts.catalogue import Sampling

STATES, POOLED = "text", "pooled"


@dataclass(frozen=True)
class Family:
    """One architecture of text-to-image pipelines; an entry of FAMILIES makes a new one known.

    Args:
        name: ours.
        pipeline: the stock class.
        denoiser: the component that predicts noise, velocity or flow.
        encoders: the text encoders that may change. T5 may not: diffusers reads no LoRA of it.
        reads_text: patterns of what training changes by default.
        enters: by place, patterns of the weights that read the text itself there.
        keys_and_values: patterns of what makes attention's keys and values of text.
        attention: patterns of all that attention to text is made of.
        readers: the tokenizers of the states' tokens, one after the other, and how many tokens each
            reads; None for its own length.
        unscaled: mean and deviation of the VAE's latents, which the denoiser knows without either.
        sampling: how such models are sampled by default.
        denoise: the denoiser's output [N, C, h, w] for latents at time steps [N].
        unpacked: latents [N, C, h, w] of those that the pipeline draws, w pixels wide.
        guided: whether it is sampled by classifier-free guidance.
        spared: what the pipeline can draw without, if it lacks all of them.
        drawing: options to draw with.
        others: further denoisers, which may change too.
        learned: what the pipeline's own calls told, if no entry of FAMILIES does.
    """

    name: str
    pipeline: type[DiffusionPipeline]
    denoiser: str
    encoders: Sequence[str]
    reads_text: Sequence[str]
    enters: Mapping[str, Sequence[str]]
    keys_and_values: Sequence[str]
    attention: Sequence[str]
    readers: Readers
    unscaled: Callable[[DiffusionPipeline], tuple[Tensor | float, Tensor | float]]
    sampling: Sampling
    denoise: Callable[[DiffusionPipeline, str, Tensor, Tensor, Condition], Tensor] = denoise
    unpacked: Callable[[DiffusionPipeline, Tensor, int], Tensor] = lambda _, latents, __: latents
    guided: bool = True
    spared: Sequence[str] = ()
    drawing: Mapping[str, object] = field(default_factory=dict)
    others: Sequence[str] = ()
    learned: LearnedFamily | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """All that may change."""
        return (self.denoiser, *self.others, *self.encoders)

    @property
    def changeable(self) -> tuple[str, ...]:
        """All that may change where it is named."""
        return (*self.components, *(self.learned.encoders if self.learned else ()))

    @property
    def loads_lora(self) -> bool:
        """Whether the stock pipeline loads LoRA files of its denoiser, and has but one."""
        kinds = self.pipeline._get_signature_types().get(self.denoiser, ())
        adapted = any(hasattr(kind, "load_lora_adapter") for kind in kinds)
        return self.denoiser in self.lora_components and adapted and not self.others

    @property
    def lora_components(self) -> Sequence[str]:
        """The components of which the stock pipeline names LoRA files."""
        return getattr(self.pipeline, "_lora_loadable_modules", ())

    def side(self, pipeline: DiffusionPipeline, size: int = 0) -> int:
        """How many pixels wide a picture is: `size`, or 0 for what the pipeline draws by itself.

        Raises ValueError for a size that the family is known not to draw.
        """
        packed = 1 if self.denoiser == "unet" else 2  # latents, to the side of a token
        part = 1 if self.learned else math.lcm(8, packed * pipeline.vae_scale_factor)
        if size % part:
            raise ValueError(f"The pictures' size is {size}, which pipelines of family {self.name} "
                             f"do not draw; give a multiple of {part}.")  # fmt: skip
        if size or self.learned:
            return size
        known = getattr(getattr(pipeline, self.denoiser).config, "sample_size", None)
        return (known or pipeline.default_sample_size) * pipeline.vae_scale_factor


def _entry(name: str, kind: type[DiffusionPipeline], **told: Any) -> Family:
    """A family of a stock class, which names its parts, and says by its call how it is sampled."""
    parts = signature(kind.__init__).parameters
    (denoiser,) = (part for part in ("unet", "transformer") if part in parts)
    kinds = {part: getattr(parts[part].annotation, "__name__", "") for part in parts}
    # The only ones of which LoRAs are read.
    encoders = [part for part, of in kinds.items() if of.startswith("CLIPText")]
    sampling, drawing = sampling_of(kind), overrides_of(kind)
    return Family(name, kind, denoiser, encoders, sampling=sampling, drawing=drawing, **told)


_unet_family = partial(
    _entry,
    reads_text=("unet.*attn2.*", "text_encoder*"),
    keys_and_values=("unet.*attn2.to_k.*", "unet.*attn2.to_v.*"),
    attention=("unet.*attn2.*",),
)
CLIP: Readers = (("tokenizer", None),)
CROSS_ATTENTION = ("unet.*attn2.to_k.weight", "unet.*attn2.to_v.weight")
_joint_family = partial(
    _entry,
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
    unscaled=shifted,
)
FAMILIES = {
    family.name: family
    for family in (
        _unet_family(
            "sd", diffusers.StableDiffusionPipeline, enters={STATES: CROSS_ATTENTION}, readers=CLIP,
            unscaled=scaled,
        ),
        _unet_family(
            "sdxl", diffusers.StableDiffusionXLPipeline,
            enters={STATES: CROSS_ATTENTION, POOLED: ("unet.add_embedding.linear_1.weight",)},
            readers=CLIP, unscaled=by_channel,
        ),
        _joint_family(
            "sd3", diffusers.StableDiffusion3Pipeline, readers=(*CLIP, ("tokenizer_3", 256)),
            spared=("text_encoder_3", "tokenizer_3"),
        ),
        _joint_family(
            "flux", diffusers.FluxPipeline, readers=(("tokenizer_2", 512),), denoise=denoise_packed,
            unpacked=unpacked, guided=False,
        ),
        _entry(
            "pixart", diffusers.PixArtSigmaPipeline,
            reads_text=("transformer.*attn2.*", "transformer.caption_projection.*"),
            enters={STATES: ("transformer.caption_projection.linear_1.weight",)},
            keys_and_values=("transformer.*attn2.to_k.*", "transformer.*attn2.to_v.*"),
            attention=("transformer.*attn2.*",),
            readers=(("tokenizer", 300),), unscaled=scaled,
        ),
    )
}  # fmt: skip


def family_of(pipeline: DiffusionPipeline) -> Family:
    """The family whose stock class the pipeline is, or derives from; else what is learned of it.

    Raises ValueError if nothing can be proved of it.
    """
    pipeline = text_to_image(pipeline)
    for family in FAMILIES.values():
        if isinstance(pipeline, family.pipeline):
            return family
    return _of_learned(learned(plain_pipeline(pipeline)))


def _of_learned(known: LearnedFamily) -> Family:
    """What was learned, as a family; where no picture goes by a layer with the text, it may change.

    Text encoders stay as they are unless they are named.
    """
    denoiser, *others = known.names
    hears = [f"{name}.*" for name in (*known.text, *known.timed)]
    edited = tuple(name for names in known.enters.values() for name in names)
    return Family(
        known.pipeline, getattr(diffusers, known.pipeline), denoiser, (),
        reads_text=[*hears, *(f"{name}.*" for name in known.encoders)],
        enters=known.enters, keys_and_values=edited, attention=hears, readers=(),
        unscaled=_untold, sampling=known.calling.sampling, denoise=_untold, guided=False,
        others=others, learned=known,
    )  # fmt: skip


def _untold(pipeline: DiffusionPipeline, *_: object) -> Any:
    raise ValueError(
        f"How a {type(pipeline).__name__} codes pictures is not known; leave out what gives it "
        "pictures of your own, or asks for them between steps."
    )


def require_supported(pipeline: DiffusionPipeline) -> Family:
    """The pipeline's family; ValueError unless it is known and its weights can be trained."""
    pipeline = plain_pipeline(text_to_image(pipeline))
    family = family_of(pipeline)
    if not family.learned:
        _require_whole(pipeline, family)
        _require_text_alone(pipeline, family.denoiser)
    for name in (family.denoiser, *family.others):
        _require_plain(pipeline, name)
    return family


def _require_plain(pipeline: DiffusionPipeline, name: str) -> None:
    """ValueError for a denoiser that answers to more than latents, time and text."""
    denoiser = getattr(pipeline, name)
    require_in_force(denoiser.modules(), {})
    config = denoiser.config
    if "ip_image_proj" in (config.get("encoder_hid_dim_type") or "") or any(
        "IPAdapter" in type(getattr(module, "processor", None)).__name__
        for module in denoiser.modules()
    ):
        raise ValueError(
            "An IP-Adapter is loaded, which draws by a picture beside the prompt; call "
            "pipeline.unload_ip_adapter() first."
        )
    if getattr(denoiser, "is_cache_enabled", False):
        raise ValueError(f"The {name} answers from a cache; call its disable_cache() first.")
    if asked := [n for n in ("class_embed_type", "num_class_embeds") if config.get(n)]:
        raise ValueError(
            f"The {name} asks for a class beside the prompt ({asked[0]}), which "
            f"{type(pipeline).__name__} does not give it; open another."
        )


def _require_text_alone(pipeline: DiffusionPipeline, name: str) -> None:
    """ValueError for a known class' weights that read a picture or a mask beside the noised one."""
    config = getattr(pipeline, name).config
    read, predicted = config.get("in_channels"), config.get("out_channels")
    if read and predicted and read > predicted:
        raise ValueError(
            f"The {name} reads {read} channels and predicts {predicted}: it wants a picture or a "
            "mask beside the noised one, which no prompt gives; open text-to-image weights."
        )


def _require_whole(pipeline: DiffusionPipeline, family: Family) -> None:
    """ValueError for a pipeline that lacks a part it draws with."""
    parts = ("text_encoder", "tokenizer", "vae", "scheduler", family.denoiser)
    none = {n for n, part in pipeline.components.items() if part is None and n.startswith(parts)}
    if missing := sorted(none - set(family.spared if none >= set(family.spared) else ())):
        raise ValueError(f"The pipeline has no {', '.join(missing)}; open it with all its parts.")
