"""One pipeline in every form that people hold it in: folder, variant, one file, open object."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from hosts import CATALOGUE, build_tiny_pipeline
from safetensors.torch import save_file
from tiny_families import build_family
from torch import Tensor

from erase.bundled import JUDGE as FOLDER
from erase.erasure.erasure import Erasure
from erase.evaluate.pictures.generation import EvaluationConfig
from erase.models.opening import Model, load_model
from erase.models.stored import denoiser_file, stored_dtype, tensors_in
from erase.prompts.request import EraseRequest
from erase.runs.artefacts import export
from erase.runs.attack import AttackRun
from erase.runs.erase import RunConfig, run
from erase.runs.measure import MeasureRun, measure
from erase.tasks.diffusion.sampling import draw

JUDGE = f"local-dir:{FOLDER}"
# From the names of diffusers to those of the original code, for the tiny pipeline's layers.
UNET = [
    (r"^down_blocks\.0\.resnets\.0", "input_blocks.1.0"),
    (r"^down_blocks\.0\.downsamplers\.0\.conv", "input_blocks.2.0.op"),
    (r"^down_blocks\.1\.resnets\.0", "input_blocks.3.0"),
    (r"^down_blocks\.1\.attentions\.0", "input_blocks.3.1"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
    (r"^up_blocks\.0\.resnets\.(\d)", r"output_blocks.\1.0"),
    (r"^up_blocks\.0\.attentions\.(\d)", r"output_blocks.\1.1"),
    (r"^up_blocks\.0\.upsamplers\.0", "output_blocks.1.2"),
    (r"^up_blocks\.1\.resnets\.0", "output_blocks.2.0"),
    (r"^up_blocks\.1\.resnets\.1", "output_blocks.3.0"),
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"(?<!transformer_blocks\.0)\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"(?<!transformer_blocks\.0)\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
VAE = [
    (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.0\.resnets\.", "up.1.block."),
    (r"up_blocks\.1\.resnets\.", "up.0.block."),
    (r"up_blocks\.0\.upsamplers\.0", "up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
]


def renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for old, new in rules:
        name = re.sub(old, new, name)
    return name


def original_layout(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    """The weights as the original code of Stable Diffusion 1 stores them."""
    unet = {renamed(n, UNET): w for n, w in pipeline.unet.state_dict().items()}
    vae = {renamed(n, VAE): w for n, w in pipeline.vae.state_dict().items()}
    linear = [n for n, w in vae.items() if "attn_1" in n and w.ndim == 2]
    vae |= {name: vae[name][..., None, None] for name in linear}
    text = pipeline.text_encoder.state_dict()
    prefix = "cond_stage_model.transformer.text_model."
    return {
        **{f"model.diffusion_model.{n}": w.contiguous() for n, w in unet.items()},
        **{f"first_stage_model.{n}": w.contiguous() for n, w in vae.items()},
        **{prefix + n.removeprefix("text_model."): w.contiguous() for n, w in text.items()},
    }


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Path:
    """The tiny pipeline as a folder, a folder of one variant, and two single files."""
    place, pipeline = tmp_path_factory.mktemp("forms"), build_tiny_pipeline()
    pipeline.save_pretrained(place / "folder")
    save_file(original_layout(pipeline), place / "one.safetensors")
    torch.save({"state_dict": original_layout(pipeline)}, place / "one.ckpt")
    build_tiny_pipeline().to(torch.float16).save_pretrained(place / "half", variant="fp16")
    return place


HOW = {
    "folder": ("folder", {}),
    "variant": ("half", {"variant": "fp16"}),
    "safetensors": ("one.safetensors", {"model_config": "folder"}),
    "ckpt": ("one.ckpt", {"model_config": "folder"}),
}


@pytest.mark.parametrize("form", HOW)
def test_every_form_opens_erases_and_exports(form, forms, tmp_path):
    name, options = HOW[form]
    options = {k: str(forms / v) if k == "model_config" else v for k, v in options.items()}
    opened = load_model(str(forms / name), **options).pipeline
    close = 0 if form != "variant" else 1e-3
    for part in ("unet", "vae", "text_encoder"):
        ours = getattr(build_tiny_pipeline(), part).state_dict()
        theirs = getattr(opened, part).state_dict()
        for key in ours:
            assert theirs[key].dtype == torch.float32
            assert torch.allclose(ours[key], theirs[key], atol=close, rtol=0), key
    asked = EraseRequest(["a ghost"], retain=["a pizza"])
    config = RunConfig(
        asked, str(forms / name), "projection", judge=JUDGE, evaluation=EvaluationConfig(1, 1, 1),
        **options,
    )  # fmt: skip
    run(config, tmp_path / "erasure")
    measure(MeasureRun(str(tmp_path / "erasure"), evaluation=config.evaluation, judge=JUDGE))
    export(str(tmp_path / "erasure"), str(tmp_path / "erased"))  # the recipe tells how to open it
    stock = DiffusionPipeline.from_pretrained(tmp_path / "erased")
    with Erasure.from_pretrained(tmp_path / "erasure").apply(opened.components):
        assert torch.equal(drawn(opened), drawn(stock))


def drawn(pipeline: DiffusionPipeline) -> Tensor:
    return draw(pipeline, ["a ghost"], [0], CATALOGUE.sampling)


def test_a_home_is_known_in_every_path(forms, monkeypatch):
    monkeypatch.setenv("HOME", str(forms))
    assert load_model("~/folder").name == "~/folder"
    assert load_model(forms / "folder").name == str(forms / "folder")
    load_model("~/one.safetensors", model_config="~/folder")


def test_an_open_pipeline_is_taken_as_it_is(tiny_pipeline):
    model = load_model(tiny_pipeline)
    assert model.pipeline is tiny_pipeline
    with pytest.raises(ValueError, match="open already"):
        load_model(tiny_pipeline, dtype="bfloat16")
    tiny_pipeline.enable_model_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match="remove_all_hooks"):
        load_model(tiny_pipeline)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_stored_dtype_is_read_without_a_weight(dtype, forms, tmp_path):
    wanted = getattr(torch, dtype)
    build_family("flux").to(wanted).save_pretrained(tmp_path, max_shard_size="30KB")
    path = denoiser_file(tmp_path, "")
    assert "-of-" in path.name
    in_one = {n: w.to(wanted) for n, w in original_layout(build_tiny_pipeline()).items()}
    save_file(in_one, tmp_path / "one.safetensors")
    torch.save(in_one, tmp_path / "one.ckpt")
    for found in map(tensors_in, (path, tmp_path / "one.safetensors", tmp_path / "one.ckpt")):
        assert stored_dtype(found) == dtype
        assert all(tensor.is_meta for tensor in found.values())


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_changes_no_picture_and_no_weight(offload, tiny_pipeline):
    base = drawn(tiny_pipeline)
    model, weights = Model("tiny", tiny_pipeline, None, offload, "cpu"), tensors(tiny_pipeline)
    before = {name: (weight, weight.clone()) for name, weight in weights.items()}
    with model.drawing() as pipeline:
        assert pipeline.unet.conv_in.weight.is_meta == (offload == "sequential")
        assert torch.equal(drawn(pipeline), base)
    for name, weight in tensors(tiny_pipeline).items():
        assert weight is before[name][0]
        assert torch.equal(weight, before[name][1])
    assert torch.equal(drawn(tiny_pipeline), base)


def test_an_offloaded_run_writes_the_same_pictures(tmp_path):
    config = RunConfig(
        EraseRequest(["ghost"]), "tiny", "uce", evaluation=EvaluationConfig(2, 2, 1), judge=JUDGE
    )
    for offload in ("none", "model", "sequential"):
        where = "" if offload == "none" else "cpu"
        model = Model("tiny", build_tiny_pipeline(), CATALOGUE, offload, where)
        run(config, tmp_path / offload, model)
    assert len({(path / "grid.png").read_bytes() for path in tmp_path.iterdir()}) == 1


def tensors(pipeline: DiffusionPipeline) -> dict[str, Tensor]:
    return dict(pipeline.unet.named_parameters())


def test_a_checkpoint_that_runs_code_is_refused_before_it_does(tmp_path, forms):
    left = tmp_path / "left"

    class Touches:
        def __reduce__(self):
            return Path.touch, (left,)

    torch.save({"state_dict": {"weight": torch.zeros(1), "more": Touches()}}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of weights alone"):
        load_model(str(tmp_path / "bad.ckpt"), model_config=str(forms / "folder"))
    assert not left.exists()
    pickle.loads(pickle.dumps(Touches()))
    assert left.exists()


REFUSED = [
    ("folder", {"device": "mars"}, "here: cpu"),
    ("folder", {"device": "meta"}, "here: cpu"),
    ("folder", {"dtype": "float8"}, "dtype is 'float8'; choose one of"),
    ("folder", {"offload": "half"}, "offload is 'half'; choose one of"),
    ("folder", {"device": "cpu", "offload": "model"}, "nothing to offload from a cpu"),
    ("folder", {"variant": "fp16"}, "no weights of the variant 'fp16'.*: the plain one"),
    ("half", {}, "no weights of the variant ''.*: 'fp16'"),
    ("one.safetensors", {"model_config": "nowhere"}, "nowhere is no pipeline folder"),
    ("one.safetensors", {}, "could not be opened.*with --model_config"),
    ("one.safetensors", {"model_config": "pixart"}, "cannot be read from one file"),
    ("text.safetensors", {"model_config": "folder"}, "no checkpoint of weights alone"),
    ("text.ckpt", {"model_config": "folder"}, "no checkpoint of weights alone"),
    ("missing.safetensors", {"model_config": "folder"}, "no checkpoint of weights alone"),
    ("other.safetensors", {"model_config": "folder"}, "could not be opened"),
    ("nowhere", {}, "could not be opened"),
]


def test_what_cannot_be_opened_is_refused_in_one_sentence(forms, monkeypatch):
    monkeypatch.chdir(forms)
    build_family("pixart").save_pretrained("pixart")
    for name in ("text.safetensors", "text.ckpt"):
        Path(name).write_text("words")
    save_file({"weight": torch.zeros(1)}, "other.safetensors")
    for name, options, reason in REFUSED:
        with pytest.raises(ValueError, match=reason) as refused:
            load_model(name, **options)
        assert "\n" not in str(refused.value)


def test_what_needs_weights_in_place_refuses_to_offload():
    with pytest.raises(ValueError, match="salun trains"):
        RunConfig(EraseRequest(["ghost"]), offload="model")
    with pytest.raises(ValueError, match="leave out offload"):
        AttackRun("erasure", offload="sequential")
    assert RunConfig(EraseRequest(["ghost"]), method="uce", offload="model").offload == "model"
