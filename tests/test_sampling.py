import torch
from hosts import build_tiny_pipeline
from transformers import CLIPImageProcessor

from erase.prompts.catalogue import Sampling
from erase.tasks.diffusion.sampling import draw


class Blackener(torch.nn.Module):
    """A filter that finds every picture unsafe."""

    def forward(self, images, clip_input):
        return [image * 0 for image in images], [True] * len(images)


def test_pictures_depend_on_their_own_seed_alone(tiny_pipeline):
    prompts, seeds = ["a ghost", "a skull", "a pizza"], [3, 4, 5]
    together = draw(tiny_pipeline, prompts, seeds, Sampling(2, 2.0))
    alone = draw(tiny_pipeline, prompts[1:2], seeds[1:2], Sampling(2, 2.0))
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_a_safety_checker_neither_filters_nor_is_lost():
    components = build_tiny_pipeline().components
    components |= {"safety_checker": Blackener(), "feature_extractor": CLIPImageProcessor()}
    filtered = type(build_tiny_pipeline())(**components)
    before = dict(filtered.config)
    pictures = draw(filtered, ["a ghost"], [0], Sampling(2, 2.0))
    assert pictures.std() > 0
    assert isinstance(filtered.safety_checker, Blackener)
    assert dict(filtered.config) == before
