"""Forgetting in a text-to-image pipeline: forget and retain sets that it draws itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor, nn

from erase.core.activations import capture_inputs
from erase.core.fingerprint import combined, fingerprint
from erase.core.names import require_in_force
from erase.core.precision import computed_in_float32
from erase.core.snapshot import Snapshot
from erase.models.family import require_supported
from erase.models.lazy import one_by_one
from erase.models.stock import with_components
from erase.prompts.catalogue import Finetuning, Sampling
from erase.prompts.request import Prompt, PromptSet, by_group
from erase.support.distributed import shard_of, shards_asked
from erase.tasks.base import InputCallback, SetName
from erase.tasks.diffusion.config import DiffusionTaskConfig
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.kept import by_tensor, kept_directions
from erase.tasks.diffusion.learned import denoiser_of
from erase.tasks.diffusion.losses import DenoisingLosses
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.picture_sets import ForgetSet, PictureSets, batches_of, new_sets
from erase.tasks.diffusion.places import TEXT
from erase.tasks.diffusion.relearning import DenoiserRelearning


class DiffusionTask(DenoisingLosses):
    """The Task of one pipeline, of any family, and one set of prompts.

    Both sets are drawn by the pipeline itself, once, when first asked for or by `prepare`, unless
    pictures of the concept are given (any sequence of them, such as a dataset's column), or `sets`
    of another task on the same prompts. Forget batches are made of the sets in `shown`. Raises
    ValueError for a pipeline or components that are not served, and if no tensor may change.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        prompts: PromptSet,
        sampling: Sampling,
        config: DiffusionTaskConfig | None = None,
        seed: int = 0,
        forget_pictures: Sequence[Image] | None = None,
        finetuning: Finetuning | None = None,
        sets: PictureSets | None = None,
        shown: Sequence[ForgetSet] = ("forget",),
        like: ConditionedDenoiser | None = None,
    ):
        self.family = require_supported(pipeline)
        config = config or DiffusionTaskConfig()
        self.config = config.of_list(len(by_group(prompts.forget)))
        self.config.require_serves(self.family)
        self.prompts, self.seed, self.finetuning = prompts, seed, finetuning or Finetuning()
        self.sampling = self.config.sampling(sampling)
        self.denoiser = like or denoiser_of(pipeline, self.sampling)
        parts = (part for module in self.components.values() for part in module.modules())
        require_in_force(parts, self.editable())
        if not self.parameters():
            raise ValueError(
                f"No tensor of {', '.join(self.components)} fits include {self.config.include} and "
                f"exclude {self.config.exclude}; widen the patterns."
            )
        known = self.denoiser, prompts, self.sampling, self.config, seed, forget_pictures
        self._sets, self._shown = sets or new_sets(*known), shown

    def _rebuilt(self, pipeline: DiffusionPipeline, shown: Sequence[ForgetSet]) -> "DiffusionTask":
        return DiffusionTask(
            pipeline, self.prompts, self.sampling, self.config, self.seed,
            finetuning=self.finetuning, sets=self._sets, shown=shown,
            like=self.denoiser.around(pipeline),
        )  # fmt: skip

    @property
    def _modules(self) -> dict[str, nn.Module]:
        """Denoisers and text encoders, as far as they may change here or by default."""
        return self.denoiser.modules | self.components

    def prepare(self) -> None:
        """Draw all sets, unless they have been drawn."""
        _ = self._sets.samples(self._shown), self._sets.retain

    def forget_batches(self, step_seed: int) -> Iterator[DiffusionBatch]:
        """One shuffled pass through the forget set."""
        samples = self._sets.samples(self._shown)
        return batches_of(self.denoiser, self.config.batch_size, step_seed, *samples)

    def retain_batches(self, step_seed: int) -> Iterator[DiffusionBatch]:
        """One shuffled pass through the retain set."""
        return batches_of(self.denoiser, self.config.batch_size, step_seed, *self._sets.retain)

    @torch.no_grad()
    def record_inputs(
        self, which: SetName, target: str, callback: InputCallback, samples: int
    ) -> None:
        """Hear what a target reads of at most `samples` prompts, group by group.

        Texts are read once; the denoiser's layers are heard along whole denoising trajectories, of
        at most MOST_TRAJECTORIES prompts.
        """
        drawn = target == self.family.denoiser
        for group, texts in self._sets.heard(which, samples, drawn).items():
            layers = {} if target == TEXT else self._layers(target)

            def told(site: str, rows: Tensor, group: str = group) -> None:
                callback(site, rows, group)

            with capture_inputs(layers, told), self._read_widely():
                read = self._run(target, texts)
            for site, rows in read.items():
                told(site, self.denoiser.placed(site, rows))
        for _ in one_by_one(self.denoiser.modules.values()):
            pass  # what was heard is not held beside the weights to be changed

    def _run(self, target: str, texts: Sequence[str]) -> dict[str, Tensor]:
        """Have the target read this process' share of the texts; what enters as text itself."""
        if target == self.family.denoiser:
            places = list(shard_of(range(len(texts))))
            self._sets.draw(self.denoiser, texts, "listening", places=places)
            return {}
        mine = list(shard_of(texts))
        if mine and target == TEXT:
            return self.readings(mine)
        if mine:
            self.denoiser.readings(mine)
        return {}

    def frozen_copy(self, trained: Mapping[str, nn.Parameter] | None = None) -> "DiffusionTask":
        """The same task around the model as it is now, whatever becomes of what is `trained`."""
        if shards_asked():
            copies = {n: deepcopy(m).requires_grad_(False) for n, m in self._modules.items()}
            return self._rebuilt(with_components(self.denoiser.pipeline, copies), self._shown)
        teacher = self._rebuilt(self.denoiser.pipeline, self._shown)
        own = self.parameters() if trained is None else trained
        moved = self.relearning.weights() if self.relearning else {}
        teacher._held = Snapshot(self._modules.values(), (*own.values(), *moved.values()))
        return teacher

    def replaced_modules(self, modules: Mapping[str, nn.Module]) -> AbstractContextManager[None]:
        """While in force, `modules` do the work of the components of their names."""
        return self.denoiser.replaced_modules(modules)

    def with_anchor_pictures(self) -> "DiffusionTask":
        """The same task with pictures of the anchors, under the forget prompts, to forget."""
        return self._rebuilt(self.denoiser.pipeline, ("anchors",))

    def with_redirection_pictures(self) -> "DiffusionTask":
        """The same task with pictures of the concept and of its anchor, all under forget prompts.

        The first teach where to turn off, the second what to draw from there on.
        """
        return self._rebuilt(self.denoiser.pipeline, ("forget", "anchors"))

    def preview(self) -> Tensor:
        """What the model as it is draws for a few forget prompts, then for as many retained."""
        with self._own_weights():
            return self._sets.preview(self.denoiser)

    def fingerprints(self) -> dict[str, str]:
        """What tells this "base", this "forget set" and this "retain set" from others."""
        weights = (w for part in one_by_one(self._modules.values()) for w in part.parameters())
        base = combined(fingerprint(weight) for weight in weights if not weight.is_meta)
        return {"base": base} | self._sets.fingerprints()

    def architecture(self) -> dict[str, Any]:
        """The family, what was learned of it, and whether LoRA files of all components load."""
        family, learned = self.family, self.family.learned
        loads = family.loads_lora and {*self.components} <= {*family.lora_components}
        noted = {"learned": learned.as_json()} if learned else {}
        return {"family": family.name, "loads_lora": loads, **noted}

    def describe(self) -> dict[str, Any]:
        """The data of the task as JSON, for the recipe."""
        return {
            "config": asdict(self.config),
            "redirected": {prompt.text: prompt.anchor for prompt in self.prompts.forget},
            "retain_prompts": len(self.prompts.retain),
            "sampling": asdict(self.sampling),
            "finetuning": asdict(self.finetuning),
            "kept_directions": {site: basis.shape[1] for site, basis in self._kept.items()},
        }

    def readings(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What is read of the prompts at each place where text enters: [N, tokens, width]."""
        return self._entering(lambda: self.denoiser.readings(prompts))

    @torch.no_grad()
    def last_readings(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What is read of each prompt's last word at each place: [n, width]."""
        return self._entering(lambda: self.denoiser.last_readings(prompts))

    @torch.no_grad()
    def redirected_readings(self, prompts: Sequence[Prompt]) -> dict[str, tuple[Tensor, Tensor]]:
        """What is read of forget prompts at each place, and of the anchor prompts: [n, width]."""
        texts, anchors = [p.text for p in prompts], [p.anchor for p in prompts]
        return self._entering(lambda: self.denoiser.redirected_readings(texts, anchors))

    @property
    def relearning(self) -> DenoiserRelearning | None:
        """The finetuning that training withstands, if the config asks for it."""
        steps, rate = self.config.relearning, self.config.relearning_rate
        return DenoiserRelearning(self.denoiser, steps, rate) if steps else None

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        return kept_directions(self) if self.config.keep else {}

    @property
    def kept(self) -> dict[str, Tensor]:
        """By tensor that reads the text, a basis [d, k] of what it is to read as ever."""
        return by_tensor(self, self._kept) if self._kept else {}

    @contextmanager
    def _read_widely(self) -> Iterator[None]:
        # Readings are rounded once, as the weights they are folded into are.
        with self._own_weights(), computed_in_float32(self.denoiser.reading.values()):
            yield

    def _entering(self, read: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What is read at the places whose weights may change; nothing is read if none may."""
        sites = self._entered
        with self._read_widely():
            found = read()
        return {site: found[site] for site in sites}

    @cached_property
    def _entered(self) -> list[str]:
        return list(self.sites(TEXT))  # which takes a walk through all modules
