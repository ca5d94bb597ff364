"""One table: what every method must keep, on every task it serves."""

import contextlib
import copy
import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hosts import (
    build_digits_task,
    build_tiny_pipeline,
    build_tiny_task,
    draw_ghost,
    trained_digits_model,
)
from processes import said_by_two
from safetensors.torch import load_file, save_file
from test_erasure import changed
from tiny_families import SIDE, build_family
from torch import nn

from erase.core.delta import deltas_between
from erase.erasure.algebra import low_rank
from erase.erasure.erasure import Erasure
from erase.erasure.weights import LORA, read_mask
from erase.methods import methods
from erase.methods.projection import ProjectionConfig
from erase.tasks.classification.task import ClassificationTask
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.checkpoint import checkpoints_in

pytestmark = pytest.mark.xdist_group("contract")  # one worker makes the erasures once
COMPONENTS = {
    "unet": ("unet",),
    "text_encoder": ("text_encoder",),
    "both": ("unet", "text_encoder"),
}
FAMILIES = ("sdxl", "sd3", "flux", "pixart")
DIGITS = "digits"


def brisk(config):
    """The config with four fast training steps, where the method trains."""
    if hasattr(config, "training"):
        training = dataclasses.replace(config.training, max_train_steps=4)
        config = dataclasses.replace(config, training=training)
    return config


def build_host(task: str, dtype=torch.float32):
    """What is erased from, a pipeline or the digits task itself; both have components."""
    if task == DIGITS:
        return build_digits_task(copy.deepcopy(trained_digits_model()).to(dtype))
    if task in FAMILIES:
        return build_family(task).to(dtype)
    return build_tiny_pipeline().to(dtype)


def erase_tiny(method: str, task: str, dtype=torch.float32, **options) -> tuple[Erasure, object]:
    """An erasure, and what it was made of; one of float64 keeps its changes in that."""
    host, chosen = build_host(task, dtype), methods()[method]
    with changes_kept_in(dtype):
        return chosen(task_around(host, task), brisk(chosen.config(**options))), host


@contextlib.contextmanager
def changes_kept_in(dtype: torch.dtype):
    """Rounded to float16 as they are, two changes that agree to 1e-12 may lie a step apart."""
    stored = deltas_between.__defaults__
    if dtype == torch.float64:
        deltas_between.__defaults__ = (None, torch.float64)
    try:
        yield
    finally:
        deltas_between.__defaults__ = stored


def task_around(host, task: str):
    if task == DIGITS:
        return host
    return build_tiny_task(host, COMPONENTS.get(task, ()), SIDE)


def tensors(host) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name.removeprefix('text_model.')}": tensor.clone()
        for component, module in host.components.items()
        if isinstance(module, nn.Module)
        for name, tensor in module.state_dict().items()
    }


# These read or train the cross-attention, or the denoiser, alone.
TEXT_ALONE = ("uce", "rece", "speed", "oce", "balance", "esd", "harden")
UNSUPPORTED = [(method, "text_encoder") for method in TEXT_ALONE]
UNSUPPORTED += [("hirm", "unet"), ("hirm", "pixart")]  # without a text encoder that may change
PICTURES, SAMPLES = (
    [name for name, method in methods().items() if issubclass(kind, method.task)]
    for kind in (DiffusionTask, ClassificationTask)
)
DRAWING = [(m, t) for m in PICTURES for t in (*COMPONENTS, *FAMILIES) if (m, t) not in UNSUPPORTED]
TABLE = [*DRAWING, *((method, DIGITS) for method in SAMPLES)]
# Every method on two models that draw, and salun on all; digits are quick.
SHARED = sorted(
    {(method, "both") for method in PICTURES}
    | {(method, FAMILIES[i % len(FAMILIES)]) for i, method in enumerate(PICTURES)}
    | {("salun", task) for task in (*COMPONENTS, *FAMILIES)}
    | {(method, DIGITS) for method in SAMPLES}
)
OTHERS = sorted({*DRAWING} - {*SHARED})
RARE = pytest.mark.families


@functools.cache
def erased_once(method: str, task: str, dtype=torch.float32, **options) -> tuple[Erasure, object]:
    return erase_tiny(method, task, dtype, **options)


def with_teacher(method: str, task: str, folder: Path) -> dict[str, str]:
    """The options of harden that name its teacher, which is written there unless it is.

    A projection's factors are float32, so that of two processes' own one rounds otherwise.
    """
    if method != "harden":
        return {}
    teacher = folder / f"teacher-{task}"
    if not teacher.exists():
        erased_once("projection", task, torch.float64)[0].save_pretrained(teacher)
    return {"folder": str(teacher)}


@pytest.fixture(scope="module", params=TABLE, ids="-".join)
def erased(request):
    return *erased_once(*request.param), *request.param


def test_the_base_is_left_bit_equal(erased):
    _, host, _, task = erased
    assert not changed(tensors(build_host(task)), tensors(host))
    for component in task_around(host, task).components:
        assert all(p.requires_grad for p in host.components[component].parameters())


def test_apply_then_revert_is_bit_equal(erased):
    erasure, host, *_ = erased
    before = tensors(host)
    applied = erasure.apply(host.components)
    assert changed(before, tensors(host)) == set(erasure.deltas) != set()
    applied.revert()
    assert not changed(before, tensors(host))


def test_no_weight_changes_but_those_that_the_method_says_it_trains(erased):
    erasure, host, method, name = erased
    task, chosen = task_around(host, name), methods()[method]
    trained = set(chosen.needs(task, brisk(chosen.config())).trained)
    assert set(erasure.deltas) & set(task.editable()) <= trained <= set(task.editable())


# Two see nothing of the layers: by default on one model of each kind.
SELECTED = [
    pytest.param(task, how, marks=RARE if rare else ())
    for task in (*COMPONENTS, *FAMILIES, DIGITS)
    for how in ("top", "random_per_layer", "bottom", "random")
    for rare in [how in ("bottom", "random") and task not in ("both", DIGITS)]
]


@pytest.mark.parametrize(("task", "selection"), SELECTED)
def test_masked_out_weights_are_bit_equal(task, selection, tmp_path):
    path = tmp_path / "mask"
    erasure, host = erase_tiny("salun", task, mask_file=str(path), mask=selection, density=0.3)
    mask, before = read_mask(path, {}), tensors(host)
    assert mask.kept == int(0.3 * mask.total)
    with erasure.apply(host.components):
        after = tensors(host)
    for name, kept in mask.tensors.items():
        assert torch.equal(before[name][~kept], after[name][~kept]), name
    moved = changed(before, after)
    assert not moved - set(mask.tensors)
    assert moved or selection == "bottom"  # which may be weights that nothing reaches


# Each trains tensors of its own kind: the model's, an extra class', adapters'.
STOPPED = [(m, DIGITS) for m in SAMPLES if hasattr(methods()[m].config(), "training")]
STOPPED += [("salun_lora", "both"), ("harden", "both")]


@pytest.mark.parametrize(("method", "task"), STOPPED)
def test_a_training_goes_on_from_a_checkpoint_to_the_same_bytes(method, task, tmp_path):
    chosen = methods()[method]
    config = brisk(chosen.config())
    often = {"checkpointing_steps": 2, "checkpoints_total_limit": 2}
    kept = dataclasses.replace(config, training=dataclasses.replace(config.training, **often))
    with checkpoints_in(tmp_path):
        whole = chosen(task_around(build_host(task), task), kept)
        shutil.rmtree(tmp_path / "checkpoint-4")
        resumed = chosen(task_around(build_host(task), task), kept)
    plain = erased_once(method, task)[0]
    for name, delta in plain.deltas.items():
        assert torch.equal(delta.dense(), whole.deltas[name].dense()), name
        assert torch.equal(delta.dense(), resumed.deltas[name].dense()), name


@pytest.mark.parametrize(("method", "task"), UNSUPPORTED)
def test_what_a_method_cannot_edit_is_one_sentence_before_it_reads(method, task, monkeypatch):
    monkeypatch.delattr(ConditionedDenoiser, "condition")
    with pytest.raises(ValueError, match=r"text_encoder.*(choose|widen)"):
        erase_tiny(method, task)


def test_saved_and_loaded_are_equal(erased, tmp_path):
    erasure = erased[0]
    erasure.save_pretrained(tmp_path / "erasure")
    back = Erasure.from_pretrained(tmp_path / "erasure")
    assert back.deltas.keys() == erasure.deltas.keys()
    for name, delta in erasure.deltas.items():
        assert torch.equal(delta.dense(), back.deltas[name].dense())


@pytest.mark.parametrize(
    ("method", "task"), [*SHARED, *(pytest.param(*pair, marks=RARE) for pair in OTHERS)]
)
def test_same_seed_gives_the_same_bytes(method, task, tmp_path):
    erasure, again = erased_once(method, task)[0], erase_tiny(method, task)[0]
    for name, one in (("one", erasure), ("two", again)):
        one.save_pretrained(tmp_path / name)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    for path, other in zip(one, two, strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name


DRAW = """
import json, sys
from functools import cache
import torch
sys.modules["erase"] = None
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

open_pipeline = cache(DiffusionPipeline.from_pretrained)
pictures = {}
for name, lora in json.load(open("exports.json")).items():
    if lora:
        pipeline = open_pipeline(name.split("/")[0] + "/base")
        pipeline.load_lora_weights(name)
    else:
        pipeline = DiffusionPipeline.from_pretrained(name)
    # Mapped from a file, weights may lie unaligned, and some kernels then round otherwise.
    for module in pipeline.components.values():
        for weight in module.parameters() if isinstance(module, torch.nn.Module) else ():
            weight.data = weight.data.clone()
    options = {"use_resolution_binning": False} if "PixArt" in type(pipeline).__name__ else {}
    generator = torch.Generator().manual_seed(5)
    pictures[name] = pipeline(
        "a ghost", num_inference_steps=2, generator=generator, output_type="pt", height=16,
        width=16, **options,
    ).images
    if lora:
        pipeline.unload_lora_weights()
save_file(pictures, "pictures.safetensors")
"""


def more_erasures(pipeline) -> dict[str, Erasure]:
    """What only Stable Diffusion has: an erasure cut to a LoRA, and one of all layers."""
    layers = ProjectionConfig(targets=("unet",), space="null_space", retain_energy=0.9)
    everywhere = methods()["projection"](build_tiny_task(pipeline), layers)
    assert any(delta.down.ndim == 4 for delta in everywhere.deltas.values())
    cut = low_rank(erased_once("salun", "both")[0], 4)
    return {"salun-lora": cut, "projection-layers": everywhere}


def exported(pairs, family: str, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, bool]]:
    """What every erasure of the family draws here, and whether it was left there as a LoRA."""
    ours, loras, pipeline = {}, {}, build_host(family)
    base = draw_ghost(pipeline)
    pipeline.save_pretrained(folder / family / "base")
    rows = [(m, t) for m, t in pairs if t == family or (family == "sd" and t in COMPONENTS)]
    erasures = {f"{method}-{task}": erased_once(method, task)[0] for method, task in rows}
    erasures |= more_erasures(pipeline) if family == "sd" else {}
    for row, erasure in erasures.items():
        name = f"{family}/{row}"
        erasure.save_pretrained(folder / name)
        lora = (folder / name / LORA).exists() and hasattr(pipeline, "load_lora_weights")
        if not lora:
            name += "-pipeline"
            erasure.export_pipeline(pipeline, folder / name)
        loras[name] = lora
        with erasure.apply(pipeline.components):
            ours[name] = draw_ghost(pipeline)
    assert sum(not torch.equal(base, picture) for picture in ours.values()) > len(ours) / 2
    return ours, loras


@pytest.mark.parametrize("pairs", ["SHARED", pytest.param("DRAWING", marks=RARE)])
def test_plain_diffusers_draws_the_same_from_what_was_exported(pairs, tmp_path):
    ours, loras = {}, {}
    for family in ("sd", *FAMILIES):
        pictures, kinds = exported(globals()[pairs], family, tmp_path)
        ours, loras = ours | pictures, loras | kinds
    (tmp_path / "exports.json").write_text(json.dumps(loras))
    subprocess.run([sys.executable, "-c", DRAW], check=True, cwd=tmp_path)
    theirs = load_file(tmp_path / "pictures.safetensors")
    assert ours.keys() == theirs.keys()
    for name, picture in ours.items():
        tolerance = 1e-5 if loras[name] else 0.0
        assert (picture - theirs[name]).abs().max() <= tolerance, name


def erase_together(folder: Path, pairs: str):
    """What each of two processes does."""
    # Other numbers of threads train another model, so the digits' is handed over.
    trained_digits_model().load_state_dict(load_file(folder / "digits.safetensors"))
    for method, task in globals()[pairs]:
        options = with_teacher(method, task, folder)
        erasure, _ = erase_tiny(method, task, torch.float64, **options)
        if Accelerator().is_main_process:
            erasure.save_pretrained(folder / f"{method}-{task}")


@pytest.mark.parametrize("pairs", ["SHARED", pytest.param("OTHERS", marks=RARE)])
def test_one_and_two_processes_agree(pairs, tmp_path):
    # In float64: Adam divides by the gradient's size, so that where a gradient is nearly 0 even
    # rounding errors of float32 show.
    save_file(trained_digits_model().state_dict(), tmp_path / "digits.safetensors")
    given = {pair: with_teacher(*pair, tmp_path) for pair in globals()[pairs]}
    said_by_two(erase_together, tmp_path, pairs)
    for method, task in globals()[pairs]:
        one = erased_once(method, task, torch.float64, **given[method, task])[0]
        two = Erasure.from_pretrained(tmp_path / f"{method}-{task}")
        assert one.deltas.keys() == two.deltas.keys(), (method, task)
        for name, delta in one.deltas.items():
            close = torch.allclose(delta.dense(), two.deltas[name].dense(), rtol=0, atol=1e-6)
            assert close, (method, task, name)
