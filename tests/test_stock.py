"""Classes of the same parts: those that draw from a picture too, and those that load erasures."""

import json

import diffusers
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    PixArtSigmaPAGPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from hosts import CATALOGUE, build_tiny_pipeline
from tiny_classes import BUILDERS
from tiny_families import build_family

from erase.erasure.erasure import Erasure
from erase.methods import methods
from erase.methods.projection import ProjectionConfig
from erase.models.opening import load_model
from erase.models.stock import stock_class, text_to_image, with_components
from erase.pipelines import erased
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.task import DiffusionTask

SISTERS = {
    "sdxl": (
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLPAGPipeline",
    ),
    "sd3": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    "flux": ("FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxKontextPipeline"),
    "pixart": ("PixArtSigmaPAGPipeline",),
}


def project(pipeline: DiffusionPipeline) -> Erasure:
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE)
    task = DiffusionTask(pipeline, prompts, CATALOGUE.sampling)
    return methods()["projection"](task, ProjectionConfig(samples=4))


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in SISTERS.items() for name in names]
)
def test_a_pipeline_that_draws_from_pictures_too_forgets_as_its_sister(family, name, tmp_path):
    stock = build_family(family)
    kind = getattr(diffusers, name)
    sister = with_components(stock, {}, kind)
    ours, theirs = project(sister), project(stock)
    assert list(ours.deltas) == list(theirs.deltas)
    for path, delta in ours.deltas.items():
        assert torch.equal(delta.dense(), theirs.deltas[path].dense())
    assert ours.recipe["base"] == theirs.recipe["base"]
    ours.export_pipeline(sister, tmp_path / "erased")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "erased")) is kind


def test_perturbed_attention_draws_with_what_was_erased():
    stock = build_family("pixart")
    pag = PixArtSigmaPAGPipeline(**stock.components, pag_applied_layers="blocks.0")

    def drawn() -> torch.Tensor:
        return pag("a ghost", num_inference_steps=2, generator=torch.Generator().manual_seed(0),
                   height=16, width=16, use_resolution_binning=False, output_type="latent",
                   ).images  # fmt: skip

    before = drawn()
    with project(pag).apply(pag.components):
        assert not torch.equal(drawn(), before)
    assert torch.equal(drawn(), before)


def test_a_folder_of_an_inpainting_pipeline_is_opened_as_its_sister(tiny_pipeline, tmp_path):
    StableDiffusionInpaintPipeline(**tiny_pipeline.components, requires_safety_checker=False
        ).save_pretrained(tmp_path)  # fmt: skip
    for source in (str(tmp_path), StableDiffusionInpaintPipeline.from_pretrained(tmp_path)):
        assert type(load_model(source).pipeline) is type(tiny_pipeline)


def test_weights_that_read_a_mask_beside_the_latents_are_refused(tiny_pipeline, tmp_path):
    wider = UNet2DConditionModel.from_config(tiny_pipeline.unet.config, in_channels=9)
    painter = with_components(tiny_pipeline, {"unet": wider.eval()}, StableDiffusionInpaintPipeline)
    with pytest.raises(ValueError, match="reads 9 channels and predicts 4"):
        project(painter)
    painter.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reads 9 channels and predicts 4"):
        load_model(str(tmp_path))


def test_pipelines_without_a_sister_of_the_same_parts_stay_as_they_are(tiny_pipeline):
    assert text_to_image(tiny_pipeline) is tiny_pipeline
    assert stock_class(erased(type(tiny_pipeline)).from_pipe(tiny_pipeline)) is type(tiny_pipeline)
    learned = BUILDERS["qwen_image"]()
    assert text_to_image(learned) is learned


@pytest.mark.parametrize("name", ["sana", "flux"])
def test_any_class_can_load_erasures(name, tmp_path):
    stock = build_family(name) if name == "flux" else BUILDERS[name]()
    kind = type(stock)
    project(stock).save_pretrained(tmp_path / "erasure")
    assert erased(kind) is erased(kind)
    pipeline = with_components(stock, {}, erased(kind))
    before = [w.clone() for w in pipeline.transformer.parameters()]
    pipeline.load_erasure(tmp_path / "erasure")
    pairs = zip(before, pipeline.transformer.parameters(), strict=True)
    assert not all(torch.equal(*pair) for pair in pairs)
    pipeline.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == kind.__name__
    pipeline.unload_erasure()
    pairs = zip(before, pipeline.transformer.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_what_is_no_pipeline_class_loads_no_erasures():
    for wrong in (UNet2DConditionModel, build_tiny_pipeline()):
        with pytest.raises(ValueError, match="is no pipeline class"):
            erased(wrong)
