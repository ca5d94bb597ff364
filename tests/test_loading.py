import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from hosts import build_tiny_pipeline
from PIL import Image
from safetensors.torch import load_file
from test_contract import draw_ghost, erase_tiny, tensors
from test_erasure import changed
from tiny_families import build_family

from erase.erasure.erasure import Erasure
from erase.pipelines import (
    ErasedFluxPipeline,
    ErasedStableDiffusion3Pipeline,
    ErasedStableDiffusionPipeline,
    ErasedStableDiffusionXLPipeline,
)

KINDS = {
    "sd1": ErasedStableDiffusionPipeline,
    "sdxl": ErasedStableDiffusionXLPipeline,
    "sd3": ErasedStableDiffusion3Pipeline,
    "flux": ErasedFluxPipeline,
}
FILE = Path(__file__).parent.parent / "pipelines" / "erased_stable_diffusion.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A projection and a SalUn erasure of the tiny Stable Diffusion pipeline."""
    root = tmp_path_factory.mktemp("erasures")
    for method in ("projection", "salun"):
        erase_tiny(method, "both")[0].save_pretrained(root / method)
    return root


@pytest.mark.parametrize("family", KINDS)
def test_erasures_are_loaded_scaled_and_unloaded_bit_for_bit(family, tmp_path):
    task = "both" if family == "sd1" else family
    made = {method: erase_tiny(method, task)[0] for method in ("projection", "salun")}
    stock = build_tiny_pipeline() if family == "sd1" else build_family(family)
    pipeline = KINDS[family].from_pipe(stock)
    before, base = tensors(pipeline), draw_ghost(pipeline)
    for method, erasure in made.items():
        erasure.save_pretrained(tmp_path / method)
        pipeline.load_erasure(tmp_path / method, method)
    assert pipeline.list_erasures() == {"projection": 1.0, "salun": 1.0}
    pipeline.unload_erasure("projection")
    with made["salun"].apply(stock_copy := build_like(family)):
        assert not changed(named(stock_copy), tensors(pipeline))
    pipeline.set_erasure_scale(0.5, "salun")
    half = tensors(pipeline)
    pipeline.set_erasure_scale(0.0, "salun")
    assert not changed(before, tensors(pipeline))
    assert changed(before, half)
    pipeline.unload_erasure()
    assert pipeline.list_erasures() == {}
    assert not changed(before, tensors(pipeline))
    assert torch.equal(draw_ghost(pipeline), base)


def build_like(family):
    return (build_tiny_pipeline() if family == "sd1" else build_family(family)).components


def named(components) -> dict[str, torch.Tensor]:
    return tensors(type("Host", (), {"components": components}))


def test_projections_compose_in_the_order_of_loading(folders):
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    for name in ("one", "two"):
        pipeline.load_erasure(folders / "projection", name)
    twice = tensors(pipeline)
    pipeline.unload_erasure("two")
    pipeline.set_erasure_scale(2.0, "one")
    # W (I - sP)^2 is not W (I - 2sP).
    assert changed(twice, tensors(pipeline))


def test_what_is_fused_stays_and_is_saved_as_the_stock_class(folders, tmp_path):
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    pipeline.load_erasure(folders / "salun")
    pipeline.fuse_erasure()
    erased = tensors(pipeline)
    pipeline.unload_erasure()
    assert not changed(erased, tensors(pipeline))
    pipeline.save_pretrained(tmp_path)
    back = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(back) is StableDiffusionPipeline
    assert not changed(erased, tensors(back))


@pytest.mark.parametrize("how", ["sequential", "sliced"])
def test_offloading_and_slicing_change_nothing(how, folders, tmp_path):
    plain, other = (
        ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline()) for _ in range(2)
    )
    if how == "sequential":  # what enable_sequential_cpu_offload does, which asks for a GPU
        for module in (other.unet, other.text_encoder, other.vae):
            cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)
        assert next(other.unet.parameters()).device.type == "meta"
    else:
        other.enable_attention_slicing()
    base = draw_ghost(other)
    for pipeline in (plain, other):
        pipeline.load_erasure(folders / "salun")
    erased = draw_ghost(other)
    assert torch.allclose(erased, draw_ghost(plain), atol=1e-4)
    assert not torch.allclose(erased, base, atol=1e-3)
    other.unload_erasure()
    assert torch.equal(draw_ghost(other), base)
    other.save_pretrained(tmp_path)
    back = DiffusionPipeline.from_pretrained(tmp_path)
    assert not changed(tensors(build_tiny_pipeline()), tensors(back))


def test_a_failed_load_leaves_what_was_in_force(folders, monkeypatch):
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    pipeline.load_erasure(folders / "projection", "kept")
    before, plain, calls = tensors(pipeline), Erasure.apply, []

    def breaks(self, *args, **options):
        calls.append(0)
        if len(calls) == 1:
            raise MemoryError
        return plain(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Erasure, "apply", breaks)
        with pytest.raises(MemoryError):
            pipeline.set_erasure_scale(0.5, "kept")
    assert pipeline.list_erasures() == {"kept": 1.0}
    assert not changed(before, tensors(pipeline))


def test_erasures_of_two_bases_meet_if_that_is_wanted(folders, tmp_path):
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    other = Erasure.from_pretrained(folders / "projection")
    prints = other.recipe["base"]["fingerprints"]
    other.recipe["base"]["fingerprints"] = dict.fromkeys(prints, "0" * 16)
    other.save_pretrained(tmp_path / "other")
    pipeline.load_erasure(folders / "projection", "one")
    with pytest.raises(ValueError, match="differs from the base"):
        pipeline.load_erasure(tmp_path / "other", "two")
    pipeline.load_erasure(tmp_path / "other", "two", allow_other_base=True)
    assert list(pipeline.list_erasures()) == ["one", "two"]


def test_image_to_image_through_from_pipe_is_erased_too(folders):
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    painter = StableDiffusionImg2ImgPipeline.from_pipe(pipeline)

    def painted():
        generator = torch.Generator().manual_seed(0)
        picture = Image.new("RGB", (16, 16), "red")
        return painter("a ghost", picture, 0.9, 4, generator=generator, output_type="pt").images

    before = painted()
    pipeline.load_erasure(folders / "salun")
    assert not torch.equal(painted(), before)
    pipeline.unload_erasure()
    assert torch.equal(painted(), before)


def test_bad_loads_leave_the_pipeline_as_it_was(folders, tmp_path):
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    pipeline.load_erasure(folders / "projection", scale=0.5)
    before = tensors(pipeline)
    for source, name, said in (
        (folders / "salun", "default", "is loaded; unload it"),
        (tmp_path, "empty", "not a readable erasure folder"),
        ("no/such-repository", "hub", "could not be downloaded"),
    ):
        with pytest.raises(ValueError, match=said):
            pipeline.load_erasure(source, name)
    for option in ("scales", "weight_name"):  # of others, or misspelt
        with pytest.raises(ValueError, match=f"knows no {option}"):
            pipeline.load_erasure(folders / "salun", "new", **{option: 0.5})
    other = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.mul_(1.5)
    with pytest.raises(ValueError, match="differs from the base"):
        other.load_erasure(folders / "projection")
    other.load_erasure(folders / "projection", allow_other_base=True)
    with pytest.raises(ValueError, match="No erasure named nobody is loaded"):
        pipeline.set_erasure_scale(1.0, "nobody")
    assert pipeline.list_erasures() == {"default": 0.5}
    assert not changed(before, tensors(pipeline))


def test_in_half_precision_the_base_comes_back_too(folders):
    half = build_tiny_pipeline().to(torch.float16)
    pipeline = ErasedStableDiffusionPipeline.from_pipe(half, dtype=torch.float16)
    assert pipeline.unet.dtype == torch.float16
    before = tensors(pipeline)
    pipeline.load_erasure(folders / "salun")
    assert changed(before, tensors(pipeline))
    pipeline.unload_erasure()
    assert not changed(before, tensors(pipeline))


CUSTOM = """
import sys, torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

pipeline = DiffusionPipeline.from_pretrained(
    "base", custom_pipeline=sys.argv[1], trust_remote_code=True
)
pipeline.load_erasure("salun")
pictures = pipeline(
    "a ghost", num_inference_steps=2, generator=torch.Generator().manual_seed(5),
    output_type="pt", height=16, width=16,
).images
save_file({"pictures": pictures}, "pictures.safetensors")
"""


def test_a_custom_pipeline_of_a_fresh_process_loads_erasures(tmp_path):
    erasure, pipeline = erase_tiny("salun", "both")
    erasure.save_pretrained(tmp_path / "salun")
    pipeline.save_pretrained(tmp_path / "base")
    subprocess.run([sys.executable, "-c", CUSTOM, str(FILE)], check=True, cwd=tmp_path)
    with erasure.apply(pipeline.components):
        ours = draw_ghost(pipeline)
    theirs = load_file(tmp_path / "pictures.safetensors")["pictures"]
    assert torch.allclose(ours, theirs, atol=1e-5)
