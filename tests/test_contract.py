"""One table: what every method must keep, on every task it serves."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build_tiny_pipeline, build_tiny_task
from safetensors.torch import load_file
from test_erasure import changed, snapshot

from erase.algebra import low_rank
from erase.erasure import Erasure
from erase.methods import methods
from erase.methods.projection import ProjectionConfig
from erase.tasks.diffusion import DiffusionTask
from erase.weights import LORA

TASKS = {
    "unet": ("unet",),
    "text_encoder": ("text_encoder",),
    "both": ("unet", "text_encoder"),
}


def brisk(config_class):
    """The method's defaults with four fast training steps, where it trains."""
    config = config_class()
    if hasattr(config, "training"):
        training = dataclasses.replace(config.training, steps=4)
        config = dataclasses.replace(config, training=training)
    return config


def erase_tiny(method: str, task: str, dtype=torch.float32) -> tuple[Erasure, object]:
    pipeline = build_tiny_pipeline().to(dtype)
    chosen = methods()[method]
    return chosen(build_tiny_task(pipeline, TASKS[task]), brisk(chosen.config)), pipeline


# These read or train the cross-attention alone.
UNSUPPORTED = {(method, "text_encoder") for method in ("uce", "rece", "esd")}
SERVING = [name for name, method in methods().items() if issubclass(DiffusionTask, method.task)]
TABLE = [(m, t) for m in SERVING for t in TASKS if (m, t) not in UNSUPPORTED]


@pytest.fixture(scope="module", params=TABLE, ids="-".join)
def erased(request):
    return *erase_tiny(*request.param), *request.param


def test_the_base_is_left_bit_equal(erased):
    assert not changed(snapshot(build_tiny_pipeline()), snapshot(erased[1]))
    for component in ("unet", "text_encoder"):
        assert all(p.requires_grad for p in getattr(erased[1], component).parameters())


def test_apply_then_revert_is_bit_equal(erased):
    erasure, pipeline, *_ = erased
    before = snapshot(pipeline)
    applied = erasure.apply(pipeline.components)
    assert changed(before, snapshot(pipeline)) == set(erasure.deltas) != set()
    applied.revert()
    assert not changed(before, snapshot(pipeline))


def test_saved_and_loaded_are_equal(erased, tmp_path):
    erasure = erased[0]
    erasure.save_pretrained(tmp_path / "erasure")
    back = Erasure.from_pretrained(tmp_path / "erasure")
    assert back.deltas.keys() == erasure.deltas.keys()
    for name, delta in erasure.deltas.items():
        assert torch.equal(delta.dense(), back.deltas[name].dense())


def test_same_seed_gives_the_same_bytes(erased, tmp_path):
    erasure, _, method, task = erased
    again, _ = erase_tiny(method, task)
    for name, one in (("one", erasure), ("two", again)):
        one.save_pretrained(tmp_path / name)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    for path, other in zip(one, two, strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name


DRAW = """
import json, sys
import torch
sys.modules["erase"] = None
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

def draw(pipeline):
    generator = torch.Generator().manual_seed(5)
    return pipeline("a ghost", num_inference_steps=2, generator=generator, output_type="pt").images

pictures = {}
for name, kind in json.load(open("exports.json")).items():
    folder = "base" if kind == "lora" else name
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    if kind == "lora":
        pipeline.load_lora_weights(name)
    pictures[name] = draw(pipeline)
save_file(pictures, "pictures.safetensors")
"""


def draw_ghost(pipeline):
    generator = torch.Generator().manual_seed(5)
    return pipeline("a ghost", num_inference_steps=2, generator=generator, output_type="pt").images


def test_plain_diffusers_draws_the_same_from_what_was_exported(tmp_path):
    build_tiny_pipeline().save_pretrained(tmp_path / "base")
    ours, kinds = {}, {}
    erasures = {f"{method}-{task}": erase_tiny(method, task) for method, task in TABLE}
    salun, pipeline = erasures["salun-both"]
    erasures["salun-lora"] = low_rank(salun, 4), pipeline
    layers = ProjectionConfig(targets=("unet",), retain_energy=0.9)
    everywhere = methods()["projection"](build_tiny_task(pipeline), layers)
    assert any(delta.down.ndim == 4 for delta in everywhere.deltas.values())
    erasures["projection-layers"] = everywhere, pipeline
    for folder, (erasure, pipeline) in erasures.items():
        erasure.save_pretrained(tmp_path / folder)
        kinds[folder] = "lora" if (tmp_path / folder / LORA).exists() else "folder"
        if kinds[folder] == "folder":
            erasure.export_pipeline(pipeline, tmp_path / f"{folder}-pipeline")
            kinds[f"{folder}-pipeline"] = kinds.pop(folder)
        with erasure.apply(pipeline.components):
            ours[next(reversed(kinds))] = draw_ghost(pipeline)
    (tmp_path / "exports.json").write_text(json.dumps(kinds))
    subprocess.run([sys.executable, "-c", DRAW], check=True, cwd=tmp_path)
    theirs = load_file(tmp_path / "pictures.safetensors")
    base = draw_ghost(build_tiny_pipeline())
    assert ours.keys() == theirs.keys()
    for name, picture in ours.items():
        tolerance = 1e-5 if kinds[name] == "lora" else 0.0
        assert (picture - theirs[name]).abs().max() <= tolerance, name
    assert sum(not torch.equal(base, picture) for picture in ours.values()) > len(ours) / 2


PARALLEL = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from accelerate import Accelerator
from test_contract import TABLE, erase_tiny
for method, task in TABLE:
    erasure, _ = erase_tiny(method, task, torch.float64)
    if Accelerator().is_main_process:
        erasure.save_pretrained(f"{sys.argv[2]}/{method}-{task}")
"""


def test_one_and_two_processes_agree(tmp_path):
    # In float64: Adam divides by the gradient's size, so that where a gradient is nearly 0 even
    # rounding errors of float32 show.
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--main_process_port", "29533", str(script)]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "yes",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [str(Path(__file__).parent), str(tmp_path)]
    subprocess.run([*launch, *arguments], check=True, env=environment)
    for method, task in TABLE:
        one = erase_tiny(method, task, torch.float64)[0]
        two = Erasure.from_pretrained(tmp_path / f"{method}-{task}")
        assert one.deltas.keys() == two.deltas.keys(), (method, task)
        for name, delta in one.deltas.items():
            close = torch.allclose(delta.dense(), two.deltas[name].dense(), rtol=0, atol=1e-6)
            assert close, (method, task, name)
