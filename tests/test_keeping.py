"""Training held off what is kept: exact, under masks, resumed, in parallel, refused where not."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hosts import CATALOGUE, TUNING, build_tiny_pipeline, build_tiny_task
from test_fsdp import apart
from tiny_families import SIDE, build_family

from erase.cli import main
from erase.core.keeping import without
from erase.erasure.algebra import merge
from erase.erasure.erasure import Erasure
from erase.erasure.weights import read_mask
from erase.methods import methods
from erase.models.opening import load_model
from erase.prompts.request import EraseRequest, expand
from erase.runs.opening import kept_prompts
from erase.tasks.diffusion.config import DiffusionTaskConfig
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.checkpoint import checkpoints_in
from erase.training.config import TrainingConfig

KEEP = ("a skull", "a pizza in ink style")
POOLED = ("*attn2*", "*add_embedding.linear_1*")


def kept_task(host, keep=KEEP, keep_energy=0.9, components=("unet",), **options) -> DiffusionTask:
    config = build_tiny_task(host, components, SIDE).config
    config = replace(config, keep=keep, keep_energy=keep_energy, **options)
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE)
    return DiffusionTask(host, prompts, CATALOGUE.sampling, config, finetuning=TUNING)


def erase(method: str, task: DiffusionTask, training=None, **options) -> Erasure:
    kind = methods()[method]
    steps = {"max_train_steps": 4, "learning_rate": 1e-2, **(training or {})}
    return kind(task, kind.config(training=TrainingConfig(**steps), **options))


def moved(task: DiffusionTask, erasure: Erasure) -> dict[str, float]:
    """How far at most outputs on what the task keeps move, of each tensor, beside what they are."""
    found, weights = {}, task.editable()
    for name, basis in task.kept.items():
        if name in erasure.deltas:
            shape = -1, len(basis)
            change = erasure.deltas[name].dense().double().reshape(shape) @ basis
            whole = weights[name].detach().double().reshape(shape) @ basis
            found[name] = float((change.norm(dim=0) / whole.norm(dim=0)).max())
    return found


def some_basis(d: int, k: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, k).double()).Q


@pytest.mark.parametrize("density", [None, 0.9, 0.5, 0.2])  # a fifth of 40 is less than 12
def test_the_change_is_the_nearest_that_leaves_the_kept_alone(density):
    torch.manual_seed(0)
    basis, change = some_basis(40, 12), torch.randn(30, 40).double()
    allowed = torch.rand(30, 40) < (density or 1)
    allowed[0], allowed[1] = True, density is None
    change *= allowed
    held = without(change, basis, None if density is None else allowed)
    assert (held @ basis).norm(dim=1).max() < 1e-6
    assert not held[~allowed].any()
    for row, wanted, own in zip(held, change, allowed, strict=True):
        seen = basis * own[:, None]
        exact = wanted - seen @ torch.linalg.pinv(seen, rtol=1e-8) @ wanted
        assert torch.allclose(row, exact, atol=1e-6)


def test_rows_are_solved_for_in_any_number_at_once(monkeypatch):
    basis, allowed = some_basis(20, 5), torch.rand(17, 20) < 0.6
    change = torch.randn(17, 20).double() * allowed
    whole = without(change, basis, allowed)
    monkeypatch.setattr("erase.core.keeping.AT_ONCE", 250)
    assert torch.allclose(whole, without(change, basis, allowed), atol=1e-12)


CASES = {
    "salun": ("salun", {}, {}, {}),
    "few weights": ("salun", {}, {}, {"density": 0.2}),
    "decayed and averaged": ("salun", {}, {"adam_weight_decay": 0.1, "use_ema": True}, {}),
    "robust": ("salun", {"adversary": "states", "relearning": 1}, {}, {}),
    "esd": ("esd", {}, {}, {}),
    "keys and values": ("esd", {}, {}, {"variant": "x_strict"}),
    "sgd": ("gradient_ascent", {}, {"optimizer": "sgd", "learning_rate": 0.1}, {}),
    "sdxl": ("random_label", {"include": POOLED}, {}, {}),
}
TABLE = [(case, torch.float32) for case in CASES] + [("salun", torch.bfloat16)]


@pytest.mark.parametrize(("case", "dtype"), TABLE)
def test_what_is_kept_is_read_as_ever(case, dtype, tmp_path):
    method, chosen, training, options = CASES[case]
    host = (build_family("sdxl") if case == "sdxl" else build_tiny_pipeline()).to(dtype)
    path = tmp_path / "mask"
    options = options | ({"mask_file": str(path)} if method == "salun" else {})
    task = kept_task(host, **chosen)
    erasure = erase(method, task, training, **options)
    free = erase(method, kept_task(host, (), **chosen), training, **options)
    near, far = moved(task, erasure), moved(task, free)
    assert near.keys() <= far.keys()
    assert len([name for name in near if "bias" not in name]) >= 4
    assert max(near.values()) <= 1e-6
    assert min(far.values()) > 1e-4
    assert erasure.recipe["task"]["kept_directions"].keys() == task.sites("text").keys()
    masks = read_mask(path, {}).tensors if method == "salun" else {}
    for name, delta in erasure.deltas.items():
        assert name not in masks or not delta.dense()[~masks[name]].any()


@torch.no_grad()
def test_the_model_answers_kept_prompts_as_it_did_where_keys_and_values_alone_change():
    model = load_model("emoji")
    prompts = expand(EraseRequest(["ghost"]), model.catalogue)
    few = {"forget_pictures": 2, "retain_pictures": 2, "generation_steps": 1, "batch_size": 2}
    config = DiffusionTaskConfig(("unet",), **few, keep=("a bell",), keep_energy=1.0)
    task = DiffusionTask(model.pipeline, prompts, model.sampling, config)
    with torch.enable_grad():
        erasure = erase("esd", task, {"max_train_steps": 2}, variant="x_strict")
    batch = next(iter(task.forget_batches(0)))
    asked = [["a bell"] * 2, [""] * 2, ["a ghost"] * 2]
    before = [task.predict(batch, texts) for texts in asked]
    with erasure.apply(task.components):
        after = [task.predict(batch, texts) for texts in asked]
    bell, nothing, ghost = (
        float((a - b).norm() / b.norm()) for a, b in zip(after, before, strict=True)
    )
    assert max(bell, nothing) < 1e-5
    assert ghost > 1e-2


def test_with_nothing_to_keep_a_run_is_bit_identical(tiny_pipeline, monkeypatch):
    plain = erase("salun", kept_task(tiny_pipeline, ()))
    monkeypatch.setattr("erase.training.loop.holding", lambda *_: lambda: None)
    without_it = erase("salun", kept_task(tiny_pipeline, ()))
    assert apart(plain, without_it) == 0
    assert all(d.values.dtype == torch.float16 for d in plain.deltas.values())


@pytest.mark.parametrize("use_ema", [False, True])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path, use_ema):
    kept = {"checkpointing_steps": 2, "checkpoints_total_limit": 2, "use_ema": use_ema}
    with checkpoints_in(tmp_path):
        whole = erase("salun", kept_task(build_tiny_pipeline()), kept)
        shutil.rmtree(tmp_path / "checkpoint-4")
        resumed = erase("salun", kept_task(build_tiny_pipeline()), kept)
    assert apart(whole, resumed) == 0
    assert apart(whole, erase("salun", kept_task(build_tiny_pipeline()), kept)) == 0


def refused(method="salun", host=None, of_method=None, **options) -> str:
    with pytest.raises(ValueError, match=r"\.$") as caught:
        erase(method, kept_task(host or build_tiny_pipeline(), **options), **(of_method or {}))
    said = str(caught.value)
    assert ". " not in said
    return said


@pytest.mark.parametrize("method", ["salun_lora", "salun_soft", "l1_sparse", "harden"])
def test_methods_whose_steps_cannot_be_held_are_refused(method):
    assert "takes no steps" in refused(method)


def test_what_cannot_be_held_is_refused_before_any_work(tiny_pipeline, monkeypatch):
    def drawn(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr("erase.tasks.diffusion.picture_sets.PictureSets.draw", drawn)
    assert "text_encoder" in refused(components=("unet", "text_encoder"))
    assert "widen include" in refused(include=("*attn2.to_out*",))
    assert "No weight that trains" in refused("esd", of_method={"variant": "u"})
    assert "lower --task.keep_energy" in refused(keep_energy=1.0)
    assert "kept_prompts" in refused(keep=("@out/ghost",))
    for family in ("sd3", "flux", "pixart"):
        assert f"family {family}" in refused(host=build_family(family), components=())
    for method in ("uce", "projection", "balance"):
        with pytest.raises(ValueError, match="takes no steps"):
            methods()[method](kept_task(tiny_pipeline))
    with pytest.raises(ValueError, match=r"takes no steps|text_encoder"):
        methods()["hirm"](kept_task(tiny_pipeline, components=("unet", "text_encoder")))


def test_requests_in_turn_keep_what_those_before_them_changed(tmp_path, capsys):
    host = tmp_path / "tiny"
    build_tiny_pipeline().save_pretrained(host)
    (host / "concepts.json").write_text(json.dumps(asdict(CATALOGUE)))
    (tmp_path / "kept.txt").write_text("a rocket\n")
    few = ["forget_pictures=2", "retain_pictures=2", "generation_steps=1", "batch_size=2"]
    common = [
        "--method=salun", "--no_evaluation", "--salun.training.max_train_steps=2",
        '--task.components=["unet"]', *(f"--task.{one}" for one in few),
    ]  # fmt: skip

    def asked(concept: str, keep: list[str], model: Path) -> int:
        words = [f"--concept={concept}", f"--task.keep={json.dumps(keep)}", f"--model={model}"]
        return main(["run", *common, *words, f"--output={tmp_path / concept}"])

    assert asked("ghost", ["a rocket"], host) == 0
    one = Erasure.from_pretrained(tmp_path / "ghost")
    kept = kept_prompts([f"@{tmp_path / 'ghost'}", f"@{tmp_path / 'kept.txt'}", "a pizza"])
    redirected = one.recipe["task"]["redirected"]
    assert kept == list(dict.fromkeys([*redirected, *redirected.values(), "a rocket", "a pizza"]))
    assert main(["export", str(tmp_path / "ghost"), f"--output={tmp_path / 'erased'}"]) == 0
    assert asked("skull", [f"@{tmp_path / 'ghost'}", "--"], tmp_path / "erased") == 0
    two = Erasure.from_pretrained(tmp_path / "skull")
    assert set(redirected) < set(two.recipe["task"]["config"]["keep"])
    assert asked("pizza", [f"@{tmp_path / 'none'}"], host) == 2
    assert "none cannot be read" in capsys.readouterr().err
    merge([one, one]).save_pretrained(tmp_path / "joined")
    with pytest.raises(ValueError, match="does not say which prompts"):
        kept_prompts([f"@{tmp_path / 'joined'}"])
