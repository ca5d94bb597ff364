import copy
import io
import logging
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hosts import build_digits_task, build_tiny_pipeline
from PIL import Image
from test_erasure import changed, make_erasure, snapshot
from torch.utils.data import TensorDataset

import erase
from erase.attacks import attacks
from erase.bundled import JUDGE
from erase.cli import main
from erase.core.delta import Delta, DenseDelta, LowRankDelta
from erase.core.process import own_settings
from erase.core.seeds import seeded
from erase.erasure.algebra import (
    compose,
    difference,
    interference,
    low_rank,
    merge,
    scale,
    ties_merge,
)
from erase.erasure.erasure import Erasure
from erase.evaluate.pictures.folders import CaptionsConfig, captions
from erase.evaluate.pictures.judges import open_judge
from erase.methods import methods
from erase.models.opening import load_model
from erase.prompts.names import listed
from erase.runs.classify import ClassifierConfig, data_of
from erase.runs.forget_set import ForgetSetRun, choose_forget_set
from erase.runs.opening import kept_prompts
from erase.runs.state import carry_out
from erase.support.files import alone
from erase.support.pictures import load_folder
from erase.tasks.classification.datasets import Data, load_data
from erase.tasks.classification.fit import FitConfig, fit
from erase.tasks.classification.forget_sets import forget_indices
from erase.tasks.classification.task import ClassificationTask
from erase.training.config import TrainedConfig, TrainingConfig

BRIEF = TrainedConfig(training=TrainingConfig(max_train_steps=1))


@contextmanager
def switched(switch: Callable, to: object, back: object) -> Iterator[None]:
    switch(to)
    try:
        yield
    finally:
        switch(back)


SETTINGS = {
    "gradients off": lambda: switched(torch.set_grad_enabled, False, True),
    "inference mode": torch.inference_mode,
    "another device": lambda: switched(torch.set_default_device, "meta", None),
    "float64": lambda: switched(torch.set_default_dtype, torch.float64, torch.float32),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def made(method: str, task: ClassificationTask) -> dict[str, Delta]:
    config = BRIEF if issubclass(methods()[method].config, TrainedConfig) else None
    found = methods()[method](task, config)
    return found.deltas


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("method", ["finetune", "projection"])
def test_what_the_caller_has_set_changes_nothing(
    trained, method, setting: Callable[[], AbstractContextManager]
):
    task = build_digits_task(trained)
    wanted = made(method, task)
    with setting():
        found = made(method, task)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name].dense(), wanted[name].dense()) for name in wanted)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("first_out", [0, 1])
def test_threads_that_meet_compute_in_float32_and_leave_the_callers_dtype(first_out):
    with (
        switched(torch.set_default_dtype, torch.float64, torch.float32),
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(1) as other,
    ):
        here = [(thread, own_settings()) for thread in (one, other)]
        for thread, settings in here:
            thread.submit(settings.__enter__).result()
        for thread, settings in (here[first_out], here[1 - first_out]):
            assert thread.submit(lambda: torch.zeros(1).dtype).result() == torch.float32
            thread.submit(settings.__exit__, None, None, None).result()
        assert torch.get_default_dtype() == torch.float64


def joined(folder: Path, pipeline: StableDiffusionPipeline) -> list[Erasure]:
    """What comes of two erasures on the disk, with changes of every kind."""
    one, two = (Erasure.from_pretrained(folder / name) for name in ("one", "two"))
    with one.apply(pipeline.components, 0.7):
        there = {"unet.conv_in.weight": DenseDelta(pipeline.unet.conv_in.weight.detach().clone())}
    again = [join([one, two]) for join in (compose, merge, ties_merge)]
    made = [one, two, Erasure(there), low_rank(one, 3), scale(one, 0.3), difference(one, two)]
    said = interference(one, two), one.nbytes
    return [*made, *again, Erasure({}, {"said": said})]


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_erasures_are_the_same_whatever_the_caller_has_set(setting, tmp_path, caplog):
    pipeline = build_tiny_pipeline()
    before, change = snapshot(pipeline), make_erasure(pipeline)
    change.save_pretrained(tmp_path / "one")
    factors = torch.randn(8, 2, 1, 1), torch.randn(2, 4, 3, 3)
    low = LowRankDelta(*factors, factors[1].flatten(1))
    Erasure({"unet.conv_in.weight": low}).save_pretrained(tmp_path / "two")
    wanted = joined(tmp_path, pipeline)
    with setting():
        found = joined(tmp_path, pipeline)
        found[-2].save_pretrained(tmp_path / "three")
        assert all(delta.dense().is_cpu for one in found for delta in one.deltas.values())
    found.append(Erasure.from_pretrained(tmp_path / "three"))
    for one, other in zip([*wanted, wanted[-2]], found, strict=True):
        assert one.recipe == other.recipe
        assert one.deltas.keys() == other.deltas.keys()
        for name, delta in one.deltas.items():
            assert torch.equal(delta.dense(), other.deltas[name].dense())
    assert not changed(before, snapshot(pipeline))
    assert not caplog.messages


def test_an_erasure_refuses_weights_made_in_inference_mode():
    change = make_erasure(build_tiny_pipeline())
    with torch.inference_mode():
        pipeline = build_tiny_pipeline()
        with pytest.raises(ValueError, match="inference_mode"):
            change.apply(pipeline.components)


def of_the_process() -> list[object]:
    drawn = random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()
    said = logging.root.handlers[:], logging.root.level, warnings.filters[:]
    return [*drawn, *said, torch.get_num_threads(), dict(os.environ)]


def test_a_call_leaves_the_process_as_it_was(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    task, before = build_digits_task(trained), of_the_process()
    calls: list[Callable[[], object]] = [
        lambda: open_judge(f"local-dir:{JUDGE}"),
        lambda: fit(copy.deepcopy(trained), task.dataset, FitConfig(1)),
        lambda: carry_out(tmp_path / "out", (), lambda: 1, id, lambda *_: torch.randn(2)),
        *(partial(made, name, task) for name in ("finetune", "projection")),
    ]
    for call in calls:
        call()
        assert of_the_process() == before


def test_a_classifier_learns_with_gradients_off(trained):
    learner, data = copy.deepcopy(trained), build_digits_task(trained).dataset
    with torch.no_grad():
        fit(learner, data, FitConfig(1))
    assert not torch.equal(next(learner.parameters()), next(trained.parameters()))
    assert attacks()


def test_weights_made_in_inference_mode_are_refused(trained):
    with torch.inference_mode():
        task = build_digits_task(trained)
    with pytest.raises(ValueError, match="inference_mode"):
        methods()["finetune"](task, BRIEF)


def test_seeds_are_of_any_size():
    seeds = [0, 1, -1, 2**63, 2**64 - 2, 2**64 + 3, -(2**70) - 5, 10**40]
    drawn = [torch.randn(4, generator=seeded(seed)).tolist() for seed in seeds]
    assert len(set(map(tuple, drawn[:3]))) == 3
    assert drawn[1] == torch.randn(4, generator=torch.Generator().manual_seed(1)).tolist()


def test_the_home_folder_is_meant_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Erasure({}, {}).save_pretrained("~/12:30 made")
    assert not Erasure.from_pretrained("~/12:30 made").deltas
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert len(load_folder(Path("~"))) == 1
    assert CaptionsConfig("~/words.txt").captions == str(tmp_path / "words.txt")
    carry_out(
        "~/out", (), lambda: 1, lambda _: 2, lambda _, __, folder: folder.joinpath("a").touch()
    )
    assert (tmp_path / "out" / "a").exists()
    assert not (tmp_path / "~").exists()


def test_the_home_of_nobody_is_refused_in_a_sentence(tmp_path):
    place = "~nobody-of-this-name/file.json"
    data = Data(TensorDataset(torch.zeros(4, 1), torch.zeros(4)), TensorDataset(), 2)
    refusals: list[Callable[[], object]] = [
        lambda: load_model(place),
        lambda: load_model(place.replace("json", "safetensors")),
        lambda: listed([f"@{place}"]),
        lambda: kept_prompts([f"@{place}"]),
        lambda: load_data("cifar10", place),
        lambda: data_of(ClassifierConfig(weights=place)),
        lambda: forget_indices(place, data, 0),
        lambda: Erasure.from_pretrained(place),
        lambda: load_folder(Path(place)),
    ]
    for refused in refusals:
        with pytest.raises(ValueError, match="nobody-of-this-name"):
            refused()


@pytest.mark.parametrize("files", [(), None], ids=["a folder", "a file"])
def test_the_same_output_twice_at_once_is_refused(tmp_path, files):
    def write(_: object, __: object, place: Path) -> None:
        (place if files is None else place / "a").write_text("whole")

    def again(_: object) -> None:
        with ThreadPoolExecutor(1) as others:
            others.submit(carry_out, tmp_path / "out", files, lambda: 1, id, write).result()

    with pytest.raises(ValueError, match="Another run is writing"):
        carry_out(tmp_path / "out", files, lambda: 1, again, write)
    carry_out(tmp_path / "out", files, lambda: 1, id, write)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_forget_set_is_looked_for_by_one_at_a_time(tmp_path):
    asked = ForgetSetRun(classifier=ClassifierConfig(), count=9)
    output = tmp_path / "forget.json"
    with alone(output), ThreadPoolExecutor(1) as others:
        other = others.submit(choose_forget_set, asked, output)
    with pytest.raises(ValueError, match="Another run is writing"):
        other.result()


def test_words_are_utf8_whatever_the_locale():
    other = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": ""}
    said = subprocess.run(
        [sys.executable, "-m", "erase", "雪舟"],
        env=os.environ | other | {"PYTHONPATH": str(Path(erase.__file__).parent.parent)},
        capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert "'雪舟'" in said.stderr


def test_files_are_utf8_where_windows_own_encoding_is_the_default(trained, tmp_path, monkeypatch):
    def windows(file, mode="r", buffering=-1, encoding=None, *rest, **options):
        if "b" not in mode and encoding in (None, "locale"):
            encoding = "cp1252"
        return opened(file, mode, buffering, encoding, *rest, **options)

    opened = io.open
    erasure = methods()["finetune"](build_digits_task(trained), BRIEF)
    erasure.recipe |= {"request": {"concepts": ["雪舟"]}}
    (tmp_path / "captions.txt").write_bytes("une forêt\n".encode())
    monkeypatch.setattr(io, "open", windows)
    erasure.save_pretrained(tmp_path / "erasure")
    assert Erasure.from_pretrained(tmp_path / "erasure").recipe["request"]["concepts"] == ["雪舟"]
    judge = open_judge(f"local-dir:{JUDGE}")
    scored = captions(CaptionsConfig(str(tmp_path / "captions.txt")), lambda: judge)
    assert scored.protocol()["captions"] == ["une forêt"]


NESTED = b"[" * 100_000 + b"]" * 100_000
FILES = {
    "missing": (["run", "--config", "FILE"], None),
    "another encoding": (["run", "--config", "FILE"], b"concept: [caf\xe9]"),
    "no YAML": (["run", "--config", "FILE"], b"a: [1"),
    "nested YAML": (["run", "--config", "FILE"], NESTED[:5000]),
    "no options": (["run", "--config", "FILE"], b"[1, 2]"),
    "nested JSON": (["classify", "--forget", "FILE", "--output", "OUT"], NESTED),
    "no array": (["classify", "--forget", "FILE.npy", "--output", "OUT"], b"PK\x03\x04"),
    "nested detections": (["evaluate", "FOLDER", "--rescore"], NESTED),
    "nested recipe": (["inspect", "FOLDER"], NESTED),
    "a folder": (["forget-set", "--count", "3", "--output", "FOLDER"], b""),
}


@pytest.mark.parametrize(("words", "content"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_used_is_named_in_one_sentence(tmp_path, capsys, words, content):
    for name in ("file", "file.npy", "detections.json", "erasure.json"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    paths = {"FILE": "file", "FILE.npy": "file.npy", "FOLDER": ".", "OUT": "out"}
    words = [str(tmp_path / paths[word]) if word in paths else word for word in words]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert (said.startswith("erase: "), said.count("\n")) == (True, 1)
