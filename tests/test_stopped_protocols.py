"""However often a protocol is stopped and however many draw it, it ends at the same bytes."""

import dataclasses
import gc
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from hosts import CATALOGUE, build_tiny_pipeline
from processes import said_by, said_by_two
from torch import Tensor

from erase.bundled import JUDGE
from erase.cli import main
from erase.erasure.erasure import Erasure
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.pictures.judges import TOGETHER, embedded
from erase.runs import drawing, evaluate
from erase.support.pictures import as_images, load_folder
from erase.support.progress import on_progress

pytestmark = pytest.mark.xdist_group("protocol")  # drawn undisturbed once
SCALES, EACH = 4, 3  # those of one guidance scale are drawn together


def protocol(folder: Path, output: str) -> int:
    """Draw and measure the prompts of a folder with its model."""
    command = ["protocol", f"--model={folder / 'tiny'}", f"--output={folder / output}"]
    command += [f"--prompts.path={folder / 'prompts.csv'}", "--prompts.label=class"]
    command += ["--prompts.guidance_scale=scale", "--drawing.steps=1", "--clip_score=true"]
    command += [f"--evaluation.judge=local-dir:{JUDGE}", "--evaluation.nudity=true"]
    return main(command)


def attack(folder: Path, output: str) -> int:
    """Attack an erasure from the folder's model with more pictures than are drawn together."""
    command = ["attack", str(folder / "erasure"), f"--output={folder / output}", "--prompts=33"]
    command += ["--attack", "recall", "latent_inversion", "concept_inversion"]
    return main([*command, "--latent_inversion.steps=2", "--concept_inversion.steps=2"])


def erasing(folder: Path, output: str) -> int:
    """Train a little, told to a tracker, and measure."""
    command = ["run", f"--model={folder / 'tiny'}", "--concept=ghost", "--method=salun"]
    command += ["--task.forget_pictures=2", "--task.retain_pictures=2", "--task.generation_steps=2"]
    command += ["--evaluation.forget_pictures=2", "--evaluation.retain_pictures=3"]
    command += ["--salun.training.max_train_steps=2", "--salun.training.report_to=tensorboard"]
    command += [f"--salun.training.logging_dir={folder / 'logs'}"]
    return main([*command, f"--output={folder / output}"])


def files(output: Path) -> dict[str, bytes]:
    paths = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, prompts, and what is made of them undisturbed."""
    folder = tmp_path_factory.mktemp("protocols")
    build_tiny_pipeline().save_pretrained(folder / "tiny")
    (folder / "tiny" / "concepts.json").write_text(json.dumps(dataclasses.asdict(CATALOGUE)))
    rows = [f"a {what},{1 + i},{what}" for what in ("ghost", "pizza", "boo")[:EACH]
            for i in range(SCALES)]  # fmt: skip
    (folder / "prompts.csv").write_text("\n".join(["prompt,scale,class", *rows]) + "\n")
    assert protocol(folder, "undisturbed") == 0
    assert len(files(folder / "undisturbed")) == 2 * EACH * SCALES + 3
    return folder


def all_parts(folder: Path, killed: bool) -> bool:
    """A protocol, an attack and an erasure in turn; whether any was refused."""

    def kill(what: str, done: int, total: int):
        if killed and (what, done) == ("pictures of the protocol", 1):
            os.kill(os.getpid(), signal.SIGKILL)

    parts = ((protocol, "shared"), (attack, "attacked by two"), (erasing, "erased by two"))
    with on_progress(kill):
        return any(part(folder, output) for part, output in parts)


class Stopped(BaseException):
    """What nothing catches."""


def test_a_protocol_stopped_anywhere_ends_at_the_same_bytes(folder):
    drawn, kept = [], folder.glob(".stopped.*/pictures/*.png")
    draw, save, measured = drawing.draw, drawing._save, evaluate.measured

    def counted(*arguments):
        drawn.append(arguments[1])
        return draw(*arguments)

    def stops_at_a_picture(picture: Tensor, path: Path):
        if len(drawn) == 2:
            raise Stopped
        save(picture, path)

    def stops_in_between(picture: Tensor, path: Path):
        if len(drawn) == 4:
            path.with_name(f".{path.name}.partial").write_bytes(b"half a pict")
            raise Stopped
        save(picture, path)

    def stops_when_all_is_measured(*arguments):
        measured(*arguments)
        raise Stopped

    stops = [
        (drawing, "_save", stops_at_a_picture),
        (drawing, "_save", stops_in_between),
        (evaluate, "measured", stops_when_all_is_measured),
    ]
    for module, name, stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drawing, "draw", counted)
            patch.setattr(module, name, stop)
            with pytest.raises(Stopped):
                protocol(folder, "stopped")
        assert not (folder / "stopped").exists()
    assert len(drawn) == SCALES + 2  # those that were stopped, again
    assert len(list(kept)) == SCALES * EACH
    os.truncate(next(folder.glob(".stopped.*/pictures/*.png")), 60)  # as a power failure may
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw", counted)
        assert protocol(folder, "stopped") == 0
    assert len(drawn) == SCALES + 3
    assert files(folder / "stopped") == files(folder / "undisturbed")
    assert not list(folder.glob(".stopped.*"))


def test_two_processes_go_on_from_a_killed_one_erase_and_attack(folder):
    said_by(all_parts, folder, True, exits=-signal.SIGKILL)
    assert len(list(folder.glob(".shared.*/pictures/*.png"))) == EACH
    assert erasing(folder, "erasure") == attack(folder, "attacked") == 0
    said = said_by_two(all_parts, folder, False)
    assert files(folder / "shared") == files(folder / "undisturbed")
    assert files(folder / "attacked by two") == files(folder / "attacked")
    assert files(folder / "erased by two").keys() == files(folder / "erasure").keys()
    assert Erasure.from_pretrained(folder / "erased by two").deltas
    assert said.count("forget accuracy") == 1
    assert not list(folder.glob(".*"))


def test_few_pictures_are_held_at_once(tmp_path):
    judge, shape, held = ClipJudge(f"local-dir:{JUDGE}"), (3, 24, 40), []
    for i, picture in enumerate(as_images(torch.rand(5 * TOGETHER, *shape))):
        picture.save(tmp_path / f"{i}.png")
    embed = judge.embed

    def watched(pictures: Tensor) -> Tensor:
        tensors = [one for one in gc.get_objects() if type(one) is Tensor]
        shown = {one.untyped_storage().data_ptr(): one for one in tensors if one.ndim > 2}
        held.append(sum(len(one.reshape(-1, *shape)) for one in shown.values()
                        if one.shape[-3:] == shape))  # fmt: skip
        return embed(pictures)

    judge.embed = watched
    assert len(embedded(judge, load_folder(tmp_path))) == 5 * TOGETHER
    assert len(held) == 5
    assert max(held) <= 2 * TOGETHER
