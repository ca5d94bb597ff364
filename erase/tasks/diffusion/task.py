"""Forgetting in a text-to-image pipeline: forget and retain sets that it draws itself."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from erase.core.activations import capture_inputs
from erase.core.fingerprint import combined, fingerprint
from erase.core.names import named_parameters
from erase.core.patterns import filter_names
from erase.models.family import Condition, Family, require_supported
from erase.prompts.catalogue import Finetuning, Sampling
from erase.prompts.request import Prompt, PromptSet, sample, texts_by_group
from erase.support.distributed import shard_of
from erase.support.pictures import load_folder
from erase.tasks.base import InputCallback, SetName
from erase.tasks.diffusion.config import MOST_TRAJECTORIES, DiffusionTaskConfig
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.picture_sets import PictureSets
from erase.tasks.diffusion.places import TEXT, EditSites


class DiffusionTask:
    """The Task of one pipeline, of any family, and one set of prompts.

    Both sets are drawn by the pipeline itself, once, when first asked for or by `prepare`, unless
    pictures of the concept are given (any sequence of them, such as a dataset's column).
    """

    draws = True

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        prompts: PromptSet,
        sampling: Sampling,
        config: DiffusionTaskConfig | None = None,
        seed: int = 0,
        forget_pictures: Sequence[Image] | None = None,
        finetuning: Finetuning | None = None,
    ):
        self.family: Family = require_supported(pipeline)
        self.config = config or DiffusionTaskConfig()
        self.config.require_serves(self.family)
        self.seed, self.finetuning = seed, finetuning or Finetuning()
        self.prompts = prompts
        self.sampling = self.config.sampling(sampling)
        side = self.sampling.size or self.family.side(pipeline)
        self._model = ConditionedDenoiser(pipeline, side)
        self._names = self._may_change(self.config.components)
        self.frozen: Mapping[str, nn.Module] = {
            name: module
            for name, module in pipeline.components.items()
            if isinstance(module, nn.Module) and name not in self.components
        }
        self._places = EditSites(self.family, self.components, self.editable)
        if not self.parameters():
            raise ValueError(
                f"No tensor of {', '.join(self.components)} fits include {self.config.include} and "
                f"exclude {self.config.exclude}; widen the patterns."
            )
        folder = self.config.forget_folder
        given = load_folder(Path(folder)) if folder else forget_pictures
        counts = self.config.forget_pictures, self.config.retain_pictures
        self._sets = PictureSets(pipeline, prompts, self.sampling, counts, seed, given)
        self._forget_sets: tuple[str, ...] = ("forget",)

    def _may_change(self, chosen: Sequence[str]) -> Sequence[str]:
        """The components that may change; ValueError if the family has no such."""
        known = self.family.components
        if strange := [name for name in chosen if name not in known]:
            raise ValueError(
                f"The components name {', '.join(strange)}, which may not change in a pipeline of "
                f"family {self.family.name}; name some of {', '.join(known)}."
            )
        return chosen or known

    @property
    def components(self) -> dict[str, nn.Module]:
        """The modules that hold what may change."""
        return {name: self._model.modules[name] for name in self._names}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The tensors that training changes, by canonical name such as `unet.conv_in.weight`."""
        return filter_names(self.editable(), self.config.include or self.family.reads_text, ())

    def editable(self) -> dict[str, nn.Parameter]:
        """All tensors that may change."""
        everything = named_parameters(self.components)
        return filter_names(everything, self.config.include or ("*",), self.config.exclude)

    def prepare(self) -> None:
        """Draw all sets, unless they have been drawn."""
        _ = self._forget_samples(), self._sets.retain

    def forget_batches(self, step_seed: int) -> Iterator[DiffusionBatch]:
        """One shuffled pass through the forget set."""
        return self._batches(*self._forget_samples(), step_seed)

    def retain_batches(self, step_seed: int) -> Iterator[DiffusionBatch]:
        """One shuffled pass through the retain set."""
        return self._batches(*self._sets.retain, None, step_seed)

    def saliency_loss(self, batch: DiffusionBatch) -> Tensor:
        """Noise-prediction MSE of the guided prediction, as SalUn's generation code takes it.

        Families that are not guided have their plain loss.
        """
        if not self.family.guided:
            return self.loss(batch)
        scale = self.sampling.guidance_scale
        prompted = self._model.denoise(batch, self.condition(batch.prompts))
        unprompted = self._model.denoise(batch, self.condition([""] * len(batch)))
        guided = (1 + scale) * prompted - scale * unprompted
        return F.mse_loss(guided, self._model.noising.target(batch))

    def loss(self, batch: DiffusionBatch) -> Tensor:
        """The noise- (or velocity-) prediction MSE the model was trained with."""
        return F.mse_loss(self.predict(batch, batch.prompts), self._model.noising.target(batch))

    def sample_losses(self, batch: DiffusionBatch) -> Tensor:
        """The same of every sample [B]."""
        return self._model.errors(batch, self.predict(batch, batch.prompts))

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
        """Parts a projection may edit: what reads the text itself, text encoders, the denoiser."""
        return self._places.targets

    def sites(self, target: str) -> dict[str, list[str]]:
        """The places where a target's weights read, and which editable weights read there."""
        return self._places.sites(target)

    @torch.no_grad()
    def record_inputs(
        self, which: SetName, target: str, callback: InputCallback, samples: int
    ) -> None:
        """Hear what a target reads of at most `samples` prompts, group by group.

        Texts are read once; the denoiser's layers are heard along whole denoising trajectories, of
        at most MOST_TRAJECTORIES prompts.
        """
        drawn = target == self.family.denoiser
        samples = min(samples, MOST_TRAJECTORIES) if drawn else samples
        prompts = self.prompts.forget if which == "forget" else self.prompts.retain
        chosen = sample(prompts, min(samples, len(prompts)), self.seed)
        for group, texts in texts_by_group(chosen).items():
            # Guidance reads the empty prompt beside every other.
            texts = [*texts, ""] if which == "retain" and not drawn else texts
            layers = {} if target == TEXT else self._places.layers(target)
            with capture_inputs(layers, lambda *heard, group=group: callback(*heard, group)):
                read = self._run(target, texts, which)
            for site, rows in read.items():
                callback(site, rows, group)

    def _run(self, target: str, texts: Sequence[str], which: SetName) -> dict[str, Tensor]:
        """Have the target read this process' share of the texts; what enters as text itself."""
        if target == self.family.denoiser:
            places = list(shard_of(range(len(texts))))
            self._sets.draw(texts, 4, f"listening to the {which} set", places=places)
            return {}
        texts = list(shard_of(texts))
        read = self._model.readings(texts) if texts else {}
        return self._entering(read) if read and target == TEXT else {}

    def frozen_copy(self) -> "DiffusionTask":
        """The same task around copies of denoiser and text encoders as they are now."""
        frozen = copy.copy(self)
        frozen._model = self._model.frozen()
        return frozen

    def replaced_modules(self, modules: Mapping[str, nn.Module]) -> AbstractContextManager[None]:
        """While in force, `modules` do the work of the components of their names."""
        return self._model.replaced_modules(modules)

    def with_anchor_pictures(self) -> "DiffusionTask":
        """The same task with pictures of the anchors, under the forget prompts, to forget."""
        other = copy.copy(self)
        other._forget_sets = ("anchors",)
        return other

    def with_redirection_pictures(self) -> "DiffusionTask":
        """The same task with pictures of concept and anchor, all under the forget prompts.

        The first show the model where to turn off, the second where it then is.
        """
        other = copy.copy(self)
        other._forget_sets = ("forget", "anchors")
        return other

    def preview(self) -> Tensor:
        """What the model as it is draws for a few forget prompts, then for as many retained."""
        return self._sets.preview()

    def _forget_samples(self) -> tuple[list[Prompt], Tensor, Tensor]:
        """The prompts and latents that forget batches are made of, and which show the concept."""
        sets = {name: getattr(self._sets, name) for name in self._forget_sets}
        prompts = [prompt for part, _ in sets.values() for prompt in part]
        shows = [torch.full((len(part),), name == "forget") for name, (part, _) in sets.items()]
        return prompts, torch.cat([latents for _, latents in sets.values()]), torch.cat(shows)

    def fingerprints(self) -> dict[str, str]:
        """What tells this "base", this "forget set" and this "retain set" from others."""
        modules = self._model.modules.values()
        base = combined(fingerprint(w) for module in modules for w in module.parameters())
        return {"base": base} | self._sets.fingerprints()

    def architecture(self) -> dict[str, Any]:
        """The family, and whether its stock pipeline loads LoRA files."""
        return {"family": self.family.name, "loads_lora": self.family.loads_lora}

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
        """The denoiser's output for the noised latents under these prompts, beset if that is asked.

        Only what is trained on is beset: with gradients, the batch's own prompts where its pictures
        show what is to be forgotten.
        """
        trained_on = torch.is_grad_enabled() and prompts == batch.prompts
        if not (self.config.adversary_steps and trained_on and batch.shows is not None):
            return self._model.denoise(batch, self.condition(prompts))
        reach = self.config.adversary_steps, self.config.adversary_reach
        with self._model.adversarial_prompts(batch, *reach) as adversarial_prompts:
            return self._model.denoise(batch, self.condition(adversarial_prompts))

    def condition(self, prompts: Sequence[str]) -> Condition:
        """What the denoiser reads of the prompts; has gradients if a text encoder may change."""
        trained = any(name in self.components for name in self.family.encoders)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            return self._model.condition(prompts)

    def readings(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What is read of the prompts at each place where text enters: [N, tokens, width]."""
        return self._entering(self._model.readings(prompts))

    @torch.no_grad()
    def redirected_readings(self, prompts: Sequence[Prompt]) -> dict[str, tuple[Tensor, Tensor]]:
        """What is read of forget prompts at each place, and of the anchor prompts: [n, width]."""
        texts, anchors = [p.text for p in prompts], [p.anchor for p in prompts]
        return self._entering(self._model.redirected_readings(texts, anchors))

    def _entering(self, read: Mapping[str, Any]) -> dict[str, Any]:
        """What is read at the places whose weights may change."""
        return {site: read[site] for site in self.sites(TEXT)}

    def _batches(
        self, prompts: Sequence[Prompt], latents: Tensor, shows: Tensor | None, step_seed: int
    ) -> Iterator[DiffusionBatch]:
        generator = torch.Generator().manual_seed(step_seed)
        order = torch.randperm(len(prompts), generator=generator)
        for rows in order.split(self.config.batch_size):
            chosen = [prompts[row] for row in rows.tolist()]
            noise = torch.randn(latents[rows].shape, generator=generator)
            timesteps = self._model.noising.draw_timesteps(len(rows), generator)
            device = self._model.device
            yield DiffusionBatch(
                latents[rows].to(device),
                noise.to(device, latents.dtype),
                timesteps.to(device),
                [prompt.text for prompt in chosen],
                [prompt.anchor for prompt in chosen],
                None if shows is None else shows[rows],
            )
