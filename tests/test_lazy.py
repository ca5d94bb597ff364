"""Closed forms that edit where text enters, from pipelines whose denoiser stays in its files."""

import json
from dataclasses import asdict

import pytest
import torch
from diffusers import DiffusionPipeline
from hosts import CATALOGUE
from safetensors.torch import load_file, save_file
from tiny_families import build_family

from erase.core.names import filter_names, named_parameters
from erase.erasure.erasure import Erasure
from erase.methods.projection import ProjectionConfig
from erase.models.family import family_of
from erase.models.lazy import one_by_one
from erase.models.opening import OpeningConfig, find_model, load_model
from erase.prompts.request import EraseRequest
from erase.runs.erase import RunConfig, run
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.sampling import draw

FAMILIES = ["sd1", "sdxl", "sd3", "flux", "pixart"]


def written(pipeline: DiffusionPipeline, folder, **how):
    pipeline.save_pretrained(folder, **how)
    (folder / "concepts.json").write_text(json.dumps(asdict(CATALOGUE)))
    return folder


def keep_what_text_enters_through(folder, pipeline: DiffusionPipeline) -> None:
    """Take all else out of the denoiser's files, and the VAE's weights altogether."""
    family = family_of(pipeline)
    names = named_parameters({family.denoiser: getattr(pipeline, family.denoiser)})
    enters = [name for patterns in family.enters.values() for name in filter_names(names, patterns)]
    for path in (folder / family.denoiser).glob("*.safetensors"):
        kept = {n: w for n, w in load_file(path).items() if f"{family.denoiser}.{n}" in enters}
        save_file(kept, path)
    for path in (folder / "vae").glob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize("name", FAMILIES)
def test_no_other_tensor_is_read_and_the_deltas_are_the_same_bytes(name, tmp_path):
    pipeline = build_family(name)
    how = {"max_shard_size": "20KB"} if name in ("sdxl", "flux") else {}
    how |= {"variant": "fp16"} if name in ("sdxl", "sd3") else {}
    folder = written(pipeline, tmp_path / "model", **how)
    model = load_model(str(folder), variant=how.get("variant", ""))

    def erased(method: str, base=None) -> tuple[bytes, dict]:
        output = tmp_path / f"{method}-{base is None}"
        config = RunConfig(
            EraseRequest(["ghost"]), str(folder), method, evaluate=False,
            variant=how.get("variant", "") if base is None else "",
        )  # fmt: skip
        assert run(config, output, base) is None
        (path,) = (p for p in output.glob("*.safetensors") if p.name != "projections.safetensors")
        noted = Erasure.from_pretrained(output).recipe["base"]
        noted.pop("variant", None)  # of files that were opened, which the open model does not tell
        return path.read_bytes(), noted

    methods = ("projection", "uce", "rece", "speed", "oce")
    whole = {method: erased(method, model) for method in methods}
    keep_what_text_enters_through(folder, pipeline)
    for method in methods:
        assert erased(method) == whole[method]


def test_what_is_let_go_reads_as_before_and_keeps_its_changes(tmp_path):
    folder = written(build_family("sdxl"), tmp_path / "model")
    model = find_model(str(folder), OpeningConfig(device="cpu")).open(text_alone=True)
    parts = [model.pipeline.text_encoder, model.pipeline.text_encoder_2, model.pipeline.unet]
    weights = [w for part in parts for w in part.parameters() if not w.is_meta]
    with torch.no_grad():
        for weight in weights[::2]:
            weight += 1
    before = [weight.clone() for weight in weights]
    assert [*one_by_one(parts)] == parts
    assert all(map(torch.equal, weights, before))


def test_what_would_draw_without_its_denoiser_is_refused(tmp_path):
    folder = written(build_family("sd1"), tmp_path / "model")
    model = find_model(str(folder), OpeningConfig(device="cpu")).open(text_alone=True)
    refused = pytest.raises(ValueError, match="left in their files")
    with refused:
        draw(model.pipeline, ["a ghost"], [0], model.sampling)
    with refused:
        model.pipeline.unet(None, None, None)
    with refused:
        latents = model.pipeline.unet.conv_in.weight[:, :, :2, :2]
        ConditionedDenoiser(model.pipeline).pictures(latents)


def test_a_method_that_passes_through_the_denoiser_opens_it(tmp_path):
    pipeline = build_family("sd1")
    folder = written(pipeline, tmp_path / "model")
    keep_what_text_enters_through(folder, pipeline)
    config = ProjectionConfig(["unet"])
    asked = RunConfig(EraseRequest(["ghost"]), str(folder), "projection", config, evaluate=False)
    with pytest.raises(ValueError, match="could not be opened"):
        run(asked, tmp_path / "out")
