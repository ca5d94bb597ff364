"""Forgetting in a Stable-Diffusion-format pipeline: forget and retain sets it draws itself."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from erase.catalogue import Finetuning, Sampling
from erase.core.activations import listening, projectable_layers
from erase.core.fingerprint import combined, fingerprint
from erase.core.patterns import matching
from erase.pictures import load_folder
from erase.request import Prompt, PromptSet, sample, texts_by_group
from erase.tasks.adversary import worst_shift
from erase.tasks.base import Listener, SetName
from erase.tasks.diffusion_config import (
    CROSS_ATTENTION,
    MOST_TRAJECTORIES,
    READS_TEXT,
    TARGETS,
    DiffusionTaskConfig,
    require_supported,
)
from erase.tasks.noising import DiffusionBatch, noising_of
from erase.tasks.picture_sets import PictureSets
from erase.tasks.tokens import padded_tokens, pairing


class DiffusionTask:
    """The Task of one StableDiffusionPipeline and one set of prompts.

    Both sets are drawn by the pipeline itself, once, when first asked for or by `prepare`, unless
    pictures of the concept are given (any sequence of them, such as a dataset's column).
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        prompts: PromptSet,
        sampling: Sampling,
        config: DiffusionTaskConfig | None = None,
        seed: int = 0,
        forget_pictures: Sequence[Image] | None = None,
        finetuning: Finetuning | None = None,
    ):
        require_supported(pipeline)
        self.config = config or DiffusionTaskConfig()
        self.seed, self.finetuning = seed, finetuning or Finetuning()
        self.prompts = prompts
        self.sampling = Sampling(self.config.generation_steps, sampling.guidance_scale)
        self.components: Mapping[str, nn.Module] = {
            name: getattr(pipeline, name) for name in self.config.components
        }
        self.frozen: Mapping[str, nn.Module] = {
            name: module
            for name, module in pipeline.components.items()
            if isinstance(module, nn.Module) and name not in self.components
        }
        self._check()
        folder = self.config.forget_folder
        given = load_folder(Path(folder)) if folder else forget_pictures
        counts = self.config.forget_pictures, self.config.retain_pictures
        self._sets = PictureSets(pipeline, prompts, self.sampling, counts, seed, given)
        self._forget_sets: tuple[str, ...] = ("forget",)
        self._tokenizer, self._noising = pipeline.tokenizer, noising_of(pipeline.scheduler)
        self._unet, self._text_encoder = pipeline.unet, pipeline.text_encoder

    def _check(self) -> None:
        if not self.parameters():
            raise ValueError(
                f"No tensor of {', '.join(self.components)} fits include {self.config.include} and "
                f"exclude {self.config.exclude}; widen the patterns."
            )

    def parameters(self) -> dict[str, nn.Parameter]:
        """The tensors that training changes, by canonical name such as `unet.conv_in.weight`."""
        return matching(self.editable(), self.config.include or READS_TEXT, ())

    def editable(self) -> dict[str, nn.Parameter]:
        """All tensors that may change."""
        everything = {
            f"{component}.{path.removeprefix('text_model.')}": parameter
            for component, module in self.components.items()
            for path, parameter in module.named_parameters()
        }
        return matching(everything, self.config.include or ("*",), self.config.exclude)

    def prepare(self) -> None:
        """Draw all sets, unless they have been drawn."""
        _ = self._pictured(), self._sets.retain

    def forget_batches(self, step_seed: int) -> Iterator[DiffusionBatch]:
        """One shuffled pass through the forget set."""
        return self._batches(*self._pictured(), step_seed)

    def retain_batches(self, step_seed: int) -> Iterator[DiffusionBatch]:
        """One shuffled pass through the retain set."""
        return self._batches(*self._sets.retain, None, step_seed)

    def saliency_loss(self, batch: DiffusionBatch) -> Tensor:
        """Noise-prediction MSE of the guided prediction, as SalUn's generation code takes it."""
        scale = self.sampling.guidance_scale
        prompted = self._denoise(batch, self.embed(batch.prompts))
        unprompted = self._denoise(batch, self.embed([""] * len(batch)))
        return F.mse_loss((1 + scale) * prompted - scale * unprompted, self._noising.target(batch))

    def loss(self, batch: DiffusionBatch) -> Tensor:
        """The noise- (or velocity-) prediction MSE the model was trained with."""
        return F.mse_loss(self.predict(batch, batch.prompts), self._noising.target(batch))

    def sample_losses(self, batch: DiffusionBatch) -> Tensor:
        """The same of every sample [B]."""
        return self._errors(batch, self.predict(batch, batch.prompts))

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

    @property
    def targets(self) -> list[str]:
        """Parts a projection may edit: text's keys and values, the text encoder, all the UNet."""
        return [target for target, part in TARGETS.items() if part in self.components]

    def sites(self, target: str) -> dict[str, list[str]]:
        """The places where a target's weights read, and which editable weights read there."""
        if target not in self.targets:
            raise ValueError(
                f"The components {', '.join(self.components)} have no target {target}; choose "
                f"other components, or of the targets {', '.join(self.targets)}."
            )
        if target == "cross_attention":
            names = [*matching(self.editable(), CROSS_ATTENTION)]
            if not names:
                raise ValueError("No key or value of cross-attention may change; widen include.")
            return {"text": names}
        return {name: [f"{name}.weight"] for name in self._layers(target)}

    def _layers(self, component: str) -> dict[str, nn.Module]:
        """The component's layers that may change and read something of the prompt."""
        editable = self.editable()
        return {
            name: layer
            for name, layer in projectable_layers(self.components[component], component).items()
            if f"{name}.weight" in editable and "time_emb" not in name
        }

    @torch.no_grad()
    def listen(self, which: SetName, target: str, hear: Listener, samples: int) -> None:
        """Hear what a target reads of at most `samples` prompts, group by group.

        Texts are read once; the UNet's layers are heard along whole denoising trajectories, of at
        most MOST_TRAJECTORIES prompts.
        """
        samples = min(samples, MOST_TRAJECTORIES) if target == "unet" else samples
        prompts = self.prompts.forget if which == "forget" else self.prompts.retain
        chosen = sample(prompts, min(samples, len(prompts)), self.seed)
        for group, texts in texts_by_group(chosen).items():
            # Guidance reads the empty prompt beside every other.
            texts = [*texts, ""] if which == "retain" and target != "unet" else texts
            if target == "cross_attention":
                hear("text", self.embed(texts), group)
                continue
            with listening(self._layers(target), lambda *heard, group=group: hear(*heard, group)):
                self._run(target, texts, which)

    def _run(self, target: str, texts: Sequence[str], which: SetName) -> None:
        if target == "text_encoder":
            self.embed(texts)
        else:
            self._sets.draw(texts, 4, f"listening to the {which} set")

    def frozen_copy(self) -> "DiffusionTask":
        """The same task around copies of UNet and text encoder as they are now."""
        frozen = copy.copy(self)
        frozen._unet = copy.deepcopy(self._unet).requires_grad_(False)
        frozen._text_encoder = copy.deepcopy(self._text_encoder).requires_grad_(False)
        copies = {"unet": frozen._unet, "text_encoder": frozen._text_encoder}
        frozen.components = {name: copies[name] for name in self.components}
        return frozen

    def picturing_anchors(self) -> "DiffusionTask":
        """The same task with pictures of the anchors, under the forget prompts, to forget."""
        other = copy.copy(self)
        other._forget_sets = ("anchors",)
        return other

    def for_redirection(self) -> "DiffusionTask":
        """The same task with pictures of concept and anchor, all under the forget prompts.

        The first show the model where to turn off, the second where it then is.
        """
        other = copy.copy(self)
        other._forget_sets = ("forget", "anchors")
        return other

    def _pictured(self) -> tuple[list[Prompt], Tensor, Tensor]:
        """The prompts and latents that forget batches are made of, and which show the concept."""
        sets = {name: getattr(self._sets, name) for name in self._forget_sets}
        prompts = [prompt for part, _ in sets.values() for prompt in part]
        shows = [torch.full((len(part),), name == "forget") for name, (part, _) in sets.items()]
        return prompts, torch.cat([latents for _, latents in sets.values()]), torch.cat(shows)

    def fingerprints(self) -> dict[str, str]:
        """What tells this "base", this "forget set" and this "retain set" from others."""
        weights = (*self._unet.parameters(), *self._text_encoder.parameters())
        base = combined(fingerprint(weight) for weight in weights)
        return {"base": base} | self._sets.fingerprints()

    def describe(self) -> dict[str, Any]:
        """The data of the task as JSON, for the recipe."""
        return {
            "config": asdict(self.config),
            "redirected": {prompt.text: prompt.anchor for prompt in self.prompts.forget},
            "retain_prompts": len(self.prompts.retain),
            "sampling": asdict(self.sampling),
            "finetuning": asdict(self.finetuning),
        }

    def predict(self, batch: DiffusionBatch, prompts: Sequence[str]) -> Tensor:
        """The UNet's output for the noised latents under these prompts, bent if that is asked.

        Only what is trained on is bent: with gradients, the batch's own prompts where its pictures
        show what is to be forgotten.
        """
        embeddings = self.embed(prompts)
        trained_on = torch.is_grad_enabled() and prompts == batch.prompts
        if self.config.adversary_steps and trained_on and batch.shows is not None:
            embeddings = embeddings + self._bend(batch, embeddings)
        return self._denoise(batch, embeddings)

    def _denoise(self, batch: DiffusionBatch, embeddings: Tensor) -> Tensor:
        return self._unet(self._noising.noisy(batch), batch.timesteps, embeddings).sample

    def _errors(self, batch: DiffusionBatch, found: Tensor) -> Tensor:
        return (found - self._noising.target(batch)).square().flatten(1).mean(1)

    def _bend(self, batch: DiffusionBatch, embeddings: Tensor) -> Tensor:
        """The shift under which the model as it is denoises the batch's pictures best."""

        steps, radius = self.config.adversary_steps, self.config.adversary_radius
        shift = worst_shift(
            lambda bent: self._errors(batch, self._denoise(batch, bent)), embeddings, steps, radius
        )
        return shift * batch.shows.to(shift)[:, None, None]

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """What cross-attention sees of the prompts: [N, tokens, width]."""
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and "text_encoder" in self.config.components
        ):
            tokens = padded_tokens(self._tokenizer, prompts)
            return self._text_encoder(tokens.to(self._text_encoder.device))[0]

    @torch.no_grad()
    def redirected_embeddings(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Token embeddings of forget prompts and, for each, the anchor prompt's: both [N, width].

        Tokens are paired as `pairing` says.
        """
        texts, anchors = [p.text for p in prompts], [p.anchor for p in prompts]
        positions = pairing(self._tokenizer, texts, anchors)
        wanted = self.embed(anchors)
        index = positions[:, :, None].expand_as(wanted).to(wanted.device)
        return self.embed(texts).flatten(0, 1), wanted.gather(1, index).flatten(0, 1)

    def _batches(
        self, prompts: Sequence[Prompt], latents: Tensor, shows: Tensor | None, step_seed: int
    ) -> Iterator[DiffusionBatch]:
        generator = torch.Generator().manual_seed(step_seed)
        order = torch.randperm(len(prompts), generator=generator)
        for rows in order.split(self.config.batch_size):
            chosen = [prompts[row] for row in rows.tolist()]
            noise = torch.randn(latents[rows].shape, generator=generator)
            timesteps = self._noising.draw_timesteps(len(rows), generator)
            device = self._unet.device
            yield DiffusionBatch(
                latents[rows].to(device),
                noise.to(device, latents.dtype),
                timesteps.to(device),
                [prompt.text for prompt in chosen],
                [prompt.anchor for prompt in chosen],
                None if shows is None else shows[rows],
            )
