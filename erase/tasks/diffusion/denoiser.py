"""A pipeline's denoiser and text encoders as one function of latents, time and prompts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from erase.core.precision import at_least_float32, computed_in_float32
from erase.models.conditions import Condition, condition_of
from erase.models.family import POOLED, STATES, family_of
from erase.models.listening import overridden
from erase.models.stock import plain_pipeline, text_to_image
from erase.models.tokens import last_positions, pairing, require_read
from erase.support.progress import Bar
from erase.tasks.diffusion.noising import DiffusionBatch, Noising, noising_of

PROMPTS_AT_ONCE = 64  # in a text encoder
PLACEHOLDER = "~"  # of a word that is to be found


class ConditionedDenoiser:
    """What the family of a pipeline makes of prompts, for pictures `size` pixels wide.

    0 is as many as the pipeline draws by itself. `guidance` is the scale that denoisers are told
    that were distilled under guidance, by default the family's usual one.
    """

    def __init__(self, pipeline: DiffusionPipeline, size: int = 0, guidance: float | None = None):
        self.pipeline = plain_pipeline(text_to_image(pipeline))
        self.family = family_of(self.pipeline)
        self.side = self.family.side(self.pipeline, size)
        self.guidance = self.family.sampling.guidance_scale if guidance is None else guidance
        self.noising = self._noising()

    def _noising(self) -> Noising:
        """The noise that the pipeline takes out; ValueError where it is not known."""
        return noising_of(self.pipeline.scheduler)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Denoiser and text encoders, by component, as far as they may change."""
        return {name: getattr(self.pipeline, name) for name in self.family.components}

    @property
    def word_encoders(self) -> dict[str, PreTrainedModel]:
        """The CLIP text encoders in which words can be searched."""
        return {name: getattr(self.pipeline, name) for name in self.family.encoders}

    @property
    def guided(self) -> bool:
        """Whether it is sampled by classifier-free guidance."""
        config = getattr(self.pipeline, self.family.denoiser).config
        return self.family.guided and not config.get("time_cond_proj_dim")

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return getattr(self.pipeline, self.family.denoiser).device

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        return getattr(self.pipeline, self.family.denoiser).dtype

    def require_coding(self) -> None:
        """ValueError where pictures can't be coded."""

    def ready(self, picture: Image) -> Tensor:
        """A picture [1, 3, H, W] in 0..1, as large as it draws them."""
        side, ready = self.side, self.pipeline.image_processor.preprocess
        return ready(picture.convert("RGB"), side, side) / 2 + 0.5

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """Latents [n, C, h, w] of pictures in 0..1, scaled, shifted and where the denoiser is."""
        vae, (mean, deviation) = self.pipeline.vae, self.family.unscaled(self.pipeline)
        with computed_in_float32([vae]):  # some autoencoders overflow in float16
            found = vae.encode((2 * pictures - 1).to(vae.device, vae.dtype))
            latents = found.latent_dist.mode() if "latent_dist" in found else found.latents
        return ((latents - mean) / deviation).to(self.device, at_least_float32(self.dtype))

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """Pictures [n, 3, H, W] in 0..1 of latents."""
        vae, (mean, deviation) = self.pipeline.vae, self.family.unscaled(self.pipeline)
        latents = latents * deviation + mean
        with computed_in_float32([vae]):
            return (vae.decode(latents.to(vae.device, vae.dtype)).sample / 2 + 0.5).clamp(0, 1)

    @property
    def reading(self) -> dict[str, nn.Module]:
        """All that text passes through: every text encoder, trained or not, and the denoiser."""
        named = self.pipeline.components.items()
        encoders = {n: m for n, m in named if n.startswith("text_encoder") and m is not None}
        return encoders | {self.family.denoiser: getattr(self.pipeline, self.family.denoiser)}

    def around(self, pipeline: DiffusionPipeline) -> "ConditionedDenoiser":
        """The same of another pipeline."""
        return ConditionedDenoiser(pipeline, self.side, self.guidance)

    @contextmanager
    def replaced_modules(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """While in force, the pipeline works with these modules in place of its own."""
        with ExitStack() as replaced:
            for name, module in modules.items():
                replaced.enter_context(overridden(self.pipeline, name, module))
            yield

    def condition(self, prompts: Sequence[str]) -> Condition:
        """What the denoiser reads of the prompts."""
        # It is the guidance that denoisers are told, which others are asked without.
        guidance = 1.0 if self.guided else self.guidance
        return condition_of(
            self.pipeline, self.family.pipeline, self.family.denoiser, prompts, height=self.side,
            width=self.side, guidance_scale=guidance, **self.family.drawing,
        )  # fmt: skip

    def noised(
        self, latents: Tensor, prompts: list[str], generator: torch.Generator
    ) -> DiffusionBatch:
        """The latents with noise and time steps, drawn on the CPU and taken to where they are."""
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        timesteps = self.noising.draw_timesteps(len(latents), generator).to(latents.device)
        return DiffusionBatch(latents, noise, timesteps, prompts, [])

    def denoise(self, batch: DiffusionBatch, text: Condition) -> Tensor:
        """The denoiser's output for the batch's noised latents."""
        return self.predict(self.noising.noisy(batch), batch.timesteps, text)

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Condition) -> Tensor:
        """The denoiser's output [N, C, h, w] for noised latents at time steps [N].

        Both are of the latents' dtype, which is at least float32; the denoiser has its own.
        """
        family, given = self.family, noisy.to(self.dtype)
        found = family.denoise(self.pipeline, family.denoiser, given, timesteps, text)
        return found.to(noisy.dtype)

    def errors(self, batch: DiffusionBatch, found: Tensor) -> Tensor:
        """The mean squared error of each sample's prediction [B]."""
        return (found - self.noising.target(batch)).square().flatten(1).mean(1)

    def require_read(self, texts: Sequence[str], anchors: Sequence[str]) -> None:
        """ValueError for a text of which not all is read that tells it from its anchor."""
        require_read(self.pipeline, self.family.readers, texts, anchors)

    def placed(self, site: str, rows: Tensor) -> Tensor:
        """What was read [N, tokens, width] at a place; [n, width] where positions differ."""
        return rows

    def readings(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What is read of the prompts at each place where text enters: [N, tokens, width]."""
        few = len(prompts) <= PROMPTS_AT_ONCE
        with Bar(total=len(prompts), desc="reading prompts", unit="prompt", disable=few) as bar:
            parts = []
            for start in range(0, len(prompts), PROMPTS_AT_ONCE):
                chunk = prompts[start : start + PROMPTS_AT_ONCE]
                parts.append(self.condition(chunk))
                bar.update(len(chunk))
        read = {STATES: torch.cat([part.states for part in parts])}
        if pooled := [part.pooled for part in parts if part.pooled is not None]:
            read[POOLED] = torch.cat(pooled)[:, None]
        return read

    def compared(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The same at the places where all prompts are read as as many tokens."""
        return self.readings(prompts)

    def last_readings(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What is read of each prompt's last word at each place, and of whole ones: [n, width]."""
        read = self.readings(prompts)
        places = last_positions(self.pipeline, self.family.readers, prompts)
        read[STATES] = read[STATES][torch.arange(len(prompts))[:, None], places]
        return {site: rows.flatten(0, 1) for site, rows in read.items()}

    def redirected_readings(
        self, prompts: Sequence[str], anchors: Sequence[str]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """What is read of the prompts at each place, and what of their anchors: both [n, width].

        Tokens are paired as the family says, whole prompts one to one.
        """
        read, wanted = self.readings(prompts), self.readings(anchors)
        states = wanted[STATES]
        places = pairing(self.pipeline, self.family.readers, prompts, anchors).to(states.device)
        wanted[STATES] = states.gather(1, places[:, :, None].expand_as(states))
        return {site: (read[site].flatten(0, 1), wanted[site].flatten(0, 1)) for site in read}
