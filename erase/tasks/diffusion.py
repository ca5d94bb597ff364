"""Forgetting in a Stable-Diffusion-format pipeline: forget and retain sets it draws itself."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from erase.catalogue import Sampling
from erase.checks import require_positive
from erase.request import Prompt, PromptSet, sample
from erase.sampling import draw

Component = Literal["unet", "text_encoder"]


@dataclass(frozen=True)
class DiffusionTaskConfig:
    """Which components may change, and the pictures the base draws of either set.

    Args:
        components: "unet", "text_encoder" or both.
        forget_pictures: how many pictures of the forget set the base draws to train on.
        retain_pictures: how many of the retain set.
        generation_steps: sampling steps of each of these pictures.
        batch_size: samples of either set in a training step.
    """

    components: Sequence[Component] = ("unet",)
    forget_pictures: int = 32
    retain_pictures: int = 96
    generation_steps: int = 15
    batch_size: int = 8

    def __post_init__(self) -> None:
        require_positive(
            self, "forget_pictures", "retain_pictures", "generation_steps", "batch_size"
        )
        if not self.components:
            raise ValueError("components is empty; name unet, text_encoder or both.")


@dataclass(frozen=True)
class DiffusionBatch:
    """Noised latents [B, C, h, w] with what they were made of, prompts and anchor prompts."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    anchors: list[str]

    def shard(self, rank: int, world: int) -> "DiffusionBatch":
        """Every `world`-th sample, from `rank` on."""
        mine = slice(rank, None, world)
        return DiffusionBatch(
            self.latents[mine],
            self.noise[mine],
            self.timesteps[mine],
            self.prompts[mine],
            self.anchors[mine],
        )


class DiffusionTask:
    """The Task of one StableDiffusionPipeline and one set of prompts.

    Both sets are drawn by the pipeline itself, once, when first asked for or by `prepare`.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        prompts: PromptSet,
        sampling: Sampling,
        config: DiffusionTaskConfig | None = None,
        seed: int = 0,
    ):
        self.config = config or DiffusionTaskConfig()
        self.seed = seed
        self.prompts = prompts
        self.sampling = Sampling(self.config.generation_steps, sampling.guidance_scale)
        self.components: Mapping[str, nn.Module] = {
            name: getattr(pipeline, name) for name in self.config.components
        }
        if pipeline.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"The pipeline is in {pipeline.dtype}; load it in float32 to train it."
            )
        self._pipeline = pipeline
        self.frozen: Mapping[str, nn.Module] = {
            name: module
            for name, module in pipeline.components.items()
            if isinstance(module, nn.Module) and name not in self.components
        }
        self._unet, self._text_encoder = pipeline.unet, pipeline.text_encoder
        self._noising = DDPMScheduler.from_config(pipeline.scheduler.config)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The editable tensors, by canonical name such as `unet.conv_in.weight`."""
        return {
            f"{component}.{path}": parameter
            for component, module in self.components.items()
            for path, parameter in module.named_parameters()
        }

    def prepare(self) -> None:
        """Draw both sets, unless they have been drawn."""
        _ = self._forget_set, self._retain_set

    def forget_batches(self, step_seed: int) -> Iterator[DiffusionBatch]:
        """One shuffled pass through the forget set."""
        return self._batches(*self._forget_set, step_seed)

    def retain_batches(self, step_seed: int) -> Iterator[DiffusionBatch]:
        """One shuffled pass through the retain set."""
        return self._batches(*self._retain_set, step_seed)

    def saliency_loss(self, batch: DiffusionBatch) -> Tensor:
        """Noise-prediction MSE of the guided prediction, as SalUn's generation code takes it."""
        scale = self.sampling.guidance_scale
        prompted = self.predict(batch, batch.prompts)
        unprompted = self.predict(batch, [""] * len(batch.prompts))
        return F.mse_loss((1 + scale) * prompted - scale * unprompted, self._target(batch))

    def loss(self, batch: DiffusionBatch) -> Tensor:
        """The noise- (or velocity-) prediction MSE the model was trained with."""
        return F.mse_loss(self.predict(batch, batch.prompts), self._target(batch))

    def redirected_loss(
        self, batch: DiffusionBatch, teacher: "DiffusionTask | None" = None
    ) -> Tensor:
        """MSE to what the teacher (or the model as it is) predicts for the anchor prompts."""
        with torch.no_grad():
            wrong_answer = (teacher or self).predict(batch, batch.anchors)
        return F.mse_loss(self.predict(batch, batch.prompts), wrong_answer)

    def divergence(self, batch: DiffusionBatch, teacher: "DiffusionTask") -> Tensor:
        """MSE to what the teacher predicts for the same prompts."""
        with torch.no_grad():
            answer = teacher.predict(batch, batch.prompts)
        return F.mse_loss(self.predict(batch, batch.prompts), answer)

    def frozen_copy(self) -> "DiffusionTask":
        """The same task around copies of UNet and text encoder as they are now."""
        frozen = copy.copy(self)
        frozen._unet = copy.deepcopy(self._unet).requires_grad_(False)
        frozen._text_encoder = copy.deepcopy(self._text_encoder).requires_grad_(False)
        copies = {"unet": frozen._unet, "text_encoder": frozen._text_encoder}
        frozen.components = {name: copies[name] for name in self.components}
        return frozen

    def describe(self) -> dict[str, Any]:
        """The data of the task as JSON, for the recipe."""
        return {
            "config": asdict(self.config),
            "redirected": {prompt.text: prompt.anchor for prompt in self.prompts.forget},
            "retain_prompts": len(self.prompts.retain),
            "sampling": asdict(self.sampling),
        }

    def predict(self, batch: DiffusionBatch, prompts: Sequence[str]) -> Tensor:
        """The UNet's output for the noised latents under these prompts."""
        noisy = self._noising.add_noise(batch.latents, batch.noise, batch.timesteps)
        return self._unet(noisy, batch.timesteps, self.embed(prompts)).sample

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """What cross-attention sees of the prompts: [N, tokens, width]."""
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and "text_encoder" in self.config.components
        ):
            tokens = self._tokenize(prompts)
            return self._text_encoder(tokens.to(self._text_encoder.device))[0]

    @torch.no_grad()
    def redirected_embeddings(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Token embeddings of forget prompts and, for each, the anchor prompt's: both [N, width].

        Tokens before and after the concept are paired with their equals, the concept's own with
        the anchor's last; padding follows.
        """
        texts, anchors = [p.text for p in prompts], [p.anchor for p in prompts]
        end = self._pipeline.tokenizer.eos_token_id
        rows = zip(self._tokenize(texts).tolist(), self._tokenize(anchors).tolist(), strict=True)
        positions = torch.tensor([_paired_positions(a, b, end) for a, b in rows])
        wanted = self.embed(anchors)
        index = positions[:, :, None].expand_as(wanted).to(wanted.device)
        return self.embed(texts).flatten(0, 1), wanted.gather(1, index).flatten(0, 1)

    def _tokenize(self, prompts: Sequence[str]) -> Tensor:
        tokenizer = self._pipeline.tokenizer
        return tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    def text_projections(self) -> dict[str, nn.Parameter]:
        """The key and value weights through which text enters the UNet, by canonical name."""
        return {
            f"unet.{path}": parameter
            for path, parameter in self._unet.named_parameters()
            if path.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        }

    def _target(self, batch: DiffusionBatch) -> Tensor:
        if self._noising.config.prediction_type == "v_prediction":
            return self._noising.get_velocity(batch.latents, batch.noise, batch.timesteps)
        return batch.noise

    def _batches(
        self, prompts: Sequence[Prompt], latents: Tensor, step_seed: int
    ) -> Iterator[DiffusionBatch]:
        generator = torch.Generator().manual_seed(step_seed)
        order = torch.randperm(len(prompts), generator=generator)
        steps = self._noising.config.num_train_timesteps
        for rows in order.split(self.config.batch_size):
            chosen = [prompts[row] for row in rows.tolist()]
            noise = torch.randn(latents[rows].shape, generator=generator)
            timesteps = torch.randint(steps, (len(rows),), generator=generator)
            device = self._unet.device
            yield DiffusionBatch(
                latents[rows].to(device),
                noise.to(device, latents.dtype),
                timesteps.to(device),
                [prompt.text for prompt in chosen],
                [prompt.anchor for prompt in chosen],
            )

    @cached_property
    def _forget_set(self) -> tuple[list[Prompt], Tensor]:
        prompts = sample(self.prompts.forget, self.config.forget_pictures, self.seed)
        return prompts, self._latents(prompts, 1, "forget set")

    @cached_property
    def _retain_set(self) -> tuple[list[Prompt], Tensor]:
        prompts = sample(self.prompts.retain, self.config.retain_pictures, self.seed)
        return prompts, self._latents(prompts, 2, "retain set")

    def _latents(self, prompts: Sequence[Prompt], stream: int, description: str) -> Tensor:
        first = 1_000_000 * (10 * self.seed + stream)
        seeds = range(first, first + len(prompts))
        texts = [prompt.text for prompt in prompts]
        return draw(self._pipeline, texts, seeds, self.sampling, "latent", description)


def _paired_positions(tokens: Sequence[int], anchor: Sequence[int], end: int) -> list[int]:
    """For each position of `tokens`, the position in `anchor` that stands for it."""
    length, anchor_length = tokens.index(end) + 1, anchor.index(end) + 1
    words, instead = list(tokens[:length]), list(anchor[:anchor_length])
    prefix = _common_length(words, instead)
    suffix = _common_length(words[prefix:][::-1], instead[prefix:][::-1])
    pairs = []
    for position in range(len(tokens)):
        if position < prefix:
            pairs.append(position)
        elif position < length - suffix:
            pairs.append(max(prefix, anchor_length - suffix - 1))
        else:
            pairs.append(min(position + anchor_length - length, len(tokens) - 1))
    return pairs


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first items are alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
