"""Every attack on every learned class: it works there, or says in a sentence why it does not."""

import pytest
import torch
from test_learned import BUILDERS, METHODS, build_task

from erase.attacks import attacks, serving
from erase.attacks.base import Target, predict_base
from erase.attacks.relearning import RelearningConfig
from erase.core.names import named_parameters
from erase.methods import get_method
from erase.tasks.diffusion.sampling import draw

ALWAYS = ("z_image", "wan")  # lists in a single stream; two denoisers and frames
SEARCHED = r"it searches words in CLIP text encoders, of which it has none"
CODED = r"how it codes pictures can't be heard"
REFUSED = {
    "concept_inversion": SEARCHED,
    "concept_inversion_of_four": SEARCHED,
    "latent_inversion": CODED,
    "p4d": SEARCHED,
    "prefix": SEARCHED,
    "recall": CODED,
    "ring_a_bell": SEARCHED,
    "state_inversion": r"which of what its denoisers read are words can't be heard",
}
CLASSES = [
    pytest.param(name, marks=() if name in ALWAYS else pytest.mark.families) for name in BUILDERS
]


def target_of(task, seen) -> Target:
    """A target that notes what it drew, and never shows the concept."""
    pipeline, side, prompts = task.denoiser.pipeline, task.sampling.size, task.prompts.forget

    def shows(pictures: torch.Tensor, asked) -> list[bool]:
        seen.append(pictures)
        return [False] * len(asked)

    coded = tuple(
        draw(pipeline, [prompt.text], [0], task.sampling, "latent")
        for prompt in (prompts[0], task.prompts.retain[0])
    )
    memory = predict_base(task.denoiser, coded[0], [prompts[0].text], 0)
    benign, pictures = [task.prompts.retain[0].text], torch.zeros(1, 3, side, side)
    return Target(task.denoiser, prompts[:1], pictures, shows, task.sampling,
                  (benign, pictures), memory, coded=coded)  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_every_attack_works_on_a_learned_class_or_says_why_not(name):
    pipeline, seen = BUILDERS[name](), []
    task = build_task(pipeline)
    method = "projection" if task.family.enters else "salun"
    erasure = get_method(method)(task, METHODS[method])
    target = target_of(task, seen)
    assert {*REFUSED, *serving(task.family)} == {*attacks()}
    for attack, why in REFUSED.items():
        with pytest.raises(ValueError, match=f"{attack} cannot serve a .*: {why}; choose of"):
            attacks()[attack](target)
    with erasure.apply(pipeline.components):
        before = {n: w.clone() for n, w in named_parameters(task.components).items()}
        for attack in serving(task.family):
            seen.clear()
            outcome = attacks()[attack](target, RelearningConfig(2, 2, 1, 1e-2))
            assert set(outcome.details["curve"]) == {0, 2}
            # What was learnt is drawn, and nothing of it stays.
            plain = target.drawn()
            assert plain.std() == 0 or not torch.equal(plain, seen[-1])  # a tiny VAE may draw grey
            for weight, own in named_parameters(task.components).items():
                assert torch.equal(own, before[weight])
