"""What the five known families' pipelines tell by themselves, beside what their entries say.

Each pipeline is learned as if it had no entry. What then differs in an erasure is what no call
tells: which levels training takes, which tokens stand for which, what guidance reads unprompted.
"""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hosts import TUNING
from tiny_families import BUILDERS, SIDE, build_family

from erase.core.names import filter_names, named_parameters
from erase.methods import get_method
from erase.methods.concept_ablation import ConceptAblationConfig
from erase.methods.esd import ESDConfig
from erase.methods.projection import ProjectionConfig
from erase.methods.salun import SalUnConfig
from erase.methods.salun_lora import SalUnLoRAConfig
from erase.models.arguments import PROMPT
from erase.models.family import FAMILIES, family_of
from erase.models.ladder import Level
from erase.models.learned import learned
from erase.models.listening import leaves, same
from erase.prompts.catalogue import Sampling
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.learned import LearnedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch, FlowNoising, noising_of
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig
from erase.training.config import TrainingConfig

SHORT = TrainingConfig(2)
TRAINED = {
    "salun": SalUnConfig(training=SHORT),
    "esd": ESDConfig(variant="all", training=SHORT),
    "salun_lora": SalUnLoRAConfig(rank=2, training=SHORT),
    "concept_ablation": ConceptAblationConfig(training=SHORT),
}


def without_entries():
    """While in force, no family is known, so that what is not learned is not there."""
    return patch.dict(FAMILIES, clear=True)


class AsLearned(LearnedDenoiser):
    """What a known family's pipeline tells of itself, noised and guided as its entry says."""

    def __init__(self, entry: ConditionedDenoiser):
        with without_entries():
            super().__init__(entry.pipeline, entry.side, entry.guidance)
            self.ladder = self._levels()
        self.entry = entry
        self.noising = noising_of(entry.pipeline.scheduler)
        self.noising.ladder = self.ladder

    guided = property(lambda self: self.entry.guided)

    def around(self, pipeline):
        return AsLearned(self.entry.around(pipeline))

    def predict(self, noisy, timesteps, text):
        packed = family_of(self.pipeline).name == "flux"
        found = []
        for one, time, calls in zip(noisy, timesteps, text.calls, strict=True):
            told = {name: self._told(time) for name in self.ladder.levels[0].told}
            latents = self.pipeline._pack_latents(one[None], 1, *one.shape) if packed else one[None]
            level = Level(self.known.names[0], told, 0.0, 0.0, 0.0, 0.0)
            said = self._predicted(latents, level, calls)
            found.append(self.entry.family.unpacked(self.pipeline, said, SIDE))
        return torch.cat(found)

    def _told(self, time):
        (first,) = self.ladder.levels[0].told.values()
        if self.entry.family.name == "flux":
            return (time / 1000)[None]
        return time[None].to(first.dtype) if first.ndim else time.to(first.dtype)


def build_task(pipeline, like=None, config=None, **options) -> DiffusionTask:
    denoiser = family_of(pipeline).denoiser
    request = EraseRequest(["ghost"], anchors=["pizza"], retain=["dog"], templates=["a {concept}"])
    config = config or DiffusionTaskConfig(
        (denoiser,), forget_pictures=1, retain_pictures=1, generation_steps=2, batch_size=1,
        size=SIDE,
    )  # fmt: skip
    return DiffusionTask(
        pipeline, expand(request, None), Sampling(2, 2.0, SIDE), config, finetuning=TUNING,
        like=like, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_learned_of_a_known_family_is_what_its_entry_says(name):
    pipeline = build_family(name)
    family = family_of(pipeline)
    with without_entries():
        found = learned(pipeline)
    weights = named_parameters({family.denoiser: getattr(pipeline, family.denoiser)})
    said = {n for ways in family.enters.values() for n in filter_names(weights, ways)}
    assert said == {name for names in found.enters.values() for name in names}
    assert found.names == [family.denoiser]
    assert found.calling.sampling == family.sampling
    assert family.drawing.items() <= found.calling.options.items()
    assert family.guided == (found.calling.unguided is not None)
    noising = noising_of(pipeline.scheduler)
    velocity = isinstance(noising, FlowNoising)
    assert found.predicts == ("velocity" if velocity else "v" if name == "sd2" else "noise")
    _require_same_noise(found, noising, unit=1000 if name == "flux" else 1)


def _require_same_noise(found, noising, unit) -> None:
    """At each time that was heard training noises as the draw did, to float32's accuracy."""
    for told, noise in found.pairs:
        batch = DiffusionBatch(
            torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([told * unit]), [], []
        )
        assert abs(float(noising.noisy(batch)) - noise) < 1e-6


@pytest.mark.parametrize("name", BUILDERS)
def test_a_call_and_its_answer_are_the_same_bits_through_both(name):
    entry = build_task(build_family(name)).denoiser
    through = AsLearned(entry)
    module, heard = getattr(entry.pipeline, entry.family.denoiser), []
    handle = module.register_forward_pre_hook(
        lambda module, args, given: heard.append(leaves([*args, *given.values()])), with_kwargs=True
    )
    noisy = torch.randn(1, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for time in (3, 500, 998):
            steps = torch.tensor([time])
            answers = [
                one.predict(noisy, steps, one.condition([PROMPT])) for one in (entry, through)
            ]
            assert torch.equal(*answers)
    handle.remove()
    assert len(heard) >= 6


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("sd1", "flux") else pytest.mark.families) for n in BUILDERS],
)
def test_training_through_what_is_learned_gives_the_same_bytes(name, tmp_path):
    pipeline = build_family(name)
    if name == "sdxl":  # what guidance reads of an empty prompt is not what a call with one reads
        pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    through = AsLearned(build_task(pipeline).denoiser)
    names = tuple(f"{layer}.*" for layer in (*through.known.text, *through.known.timed))
    config = replace(build_task(pipeline).config, include=names)
    entry = build_task(pipeline, config=config)
    other = build_task(pipeline, through, config, sets=entry._sets)
    for method, options in TRAINED.items():
        written = []
        for kind, task in (("entry", entry), ("learned", other)):
            get_method(method)(task, options).save_pretrained(tmp_path / kind / method)
            (path,) = (tmp_path / kind / method).glob("*.safetensors")
            written.append(path.read_bytes())
        assert written[0] == written[1], method


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_what_closed_forms_read_of_a_prompt_is_the_same_bits_through_both(name):
    pipeline = build_family(name)
    task = build_task(pipeline)
    with without_entries():
        through = LearnedDenoiser(pipeline, SIDE, 2.0)
        theirs = through.readings([PROMPT])
    known, family = through.known, task.family
    # A pipeline is learned with 256 tokens at most, and T5 reads the padding too.
    fewer = {n: count for n, count in known.calling.smallest.items() if n == "max_sequence_length"}
    task.denoiser.family = replace(family, drawing={**family.drawing, **fewer})
    places = {weight: site for site, names in known.enters.items() for weight in names}
    for site, rows in task.denoiser.readings([PROMPT]).items():
        other = theirs[places[task.sites("text")[site][0]]]
        if name == "pixart":  # its entry knows what is masked out, which is never read
            assert bool((rows == 0).any())
            other = torch.where(rows == 0, rows, other)
        assert torch.equal(rows, other)
    if name in ("sd1", "sd2"):  # of several prompts others round otherwise
        erased = [get_method("projection")(task, ProjectionConfig(samples=4)).deltas]
        with without_entries():
            learned_task = build_task(pipeline)
            erased.append(
                get_method("projection")(learned_task, ProjectionConfig(samples=4)).deltas
            )
        one, other = erased
        assert all(same(one[n].dense(), other[n].dense()) for n in {*one, *other})
