"""Names are taken once, and other packages may bring entries of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from erase.attacks import attacks
from erase.evaluate.base import evaluator, judge
from erase.evaluate.pictures.folders import labels  # noqa: F401 registers
from erase.evaluate.pictures.judges import open_judge
from erase.methods import methods, register
from erase.support.config import Config
from erase.support.registry import Registry

TOY = """
from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.support.config import Config

@register("toy", Config)
def toy(task, config):
    return Erasure({})
"""
TAKEN = TOY.replace('"toy"', '"salun"')
TOY_JUDGE = """
from erase.evaluate.base import judge

class Brightness:
    name, fingerprint = "brightness", "0" * 16

    def embed(self, pictures):
        return pictures.mean((1, 2, 3))[:, None]

    def classify(self, embeddings, kind, labels):
        return ["light" if value > 0.5 else "dark" for value in embeddings[:, 0].tolist()]

    def require(self, labels):
        pass

@judge("brightness")
def open_brightness(name, classes, templates, device):
    return Brightness()
"""
TOY_EVALUATOR = """
from dataclasses import dataclass

from erase.evaluate.base import evaluator
from erase.support.config import Config

@dataclass(frozen=True)
class WidthConfig(Config):
    width: bool = False

class Width:
    name = "width"

    def protocol(self):
        return {"of": "pixels"}

    def figures(self, pictures, folder):
        return {"value": max(picture.width for picture in pictures)}

@evaluator("width", WidthConfig)
def width(config, judge):
    return Width() if config.width else None
"""


def install(folder: Path, name: str, group: str, source: str) -> None:
    """As if an installed package named its module under an entry point."""
    (folder / f"{name}.py").write_text(source)
    information = folder / f"{name}-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages: of a method, a judge and an evaluator, and two that fail."""
    sources = {"toy_good": TOY, "toy_taken": TAKEN, "toy_broken": "import no_such_module"}
    for name, source in sources.items():
        install(tmp_path, name, "erase.methods", source)
    install(tmp_path, "toy_judge", "erase.judges", TOY_JUDGE)
    install(tmp_path, "toy_width", "erase.evaluators", TOY_EVALUATOR)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return tmp_path


def test_a_name_is_taken_once():
    registry = Registry[int]("number", "erase.numbers")
    registry.add("one", 1)
    with pytest.raises(ValueError, match="The number 'one' is there already"):
        registry.add("one", 2)
    assert registry.all() == {"one": 1}
    with pytest.raises(ValueError, match="There is no number 'two'; choose one of one"):
        registry.get("two")


@pytest.mark.parametrize("name", ["toy-method", "toy.method", "toy method", "2nd", ""])
def test_what_has_options_goes_by_one_word(name):
    registry, entry = Registry("thing", "erase.things"), methods()["salun"]
    with pytest.raises(ValueError, match="cannot go by that name"):
        registry.add(name, entry)
    assert not registry.all()


@pytest.mark.parametrize("name", [*methods()])
def test_no_method_takes_anothers_name(name):
    before = methods()[name]
    with pytest.raises(ValueError, match=f"The method '{name}' is there already"):
        register(name, before.config)(before.function)
    assert methods()[name] is before


SCRIPT = """
import sys
from erase.cli import main
from erase.methods import methods
print(*methods())
sys.exit(main(sys.argv[1:]))
"""


def test_methods_judges_and_evaluators_come_from_other_packages(packages, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i, shade in enumerate((0, 250, 255)):
        Image.new("L", (8, 4), shade).save(tmp_path / "pictures" / f"{i}.png")
    command = [sys.executable, "-c", SCRIPT, "evaluate", str(tmp_path / "pictures")]
    command += ["--width", "true", "--judge", "brightness", "--labels", '["light", "dark"]']
    command += ["--output", str(tmp_path / "out")]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert said.stdout.splitlines()[0].split() == sorted([*methods(), "toy"])
    for name, reason in (("toy_taken", "'salun' is there already"), ("toy_broken", "no_such")):
        assert f"The plugin {name} ({name}) of erase.methods is left out" in said.stderr
        assert reason in said.stderr
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    assert found["width"]["protocol"] == {"of": "pixels"}
    assert found["width"]["value"] == 8
    assert found["labels"]["protocol"]["judge"] == "brightness"
    assert found["labels"]["light"]["value"] == pytest.approx(2 / 3, abs=1e-4)


def test_no_judge_or_evaluator_takes_anothers_name():
    with pytest.raises(ValueError, match="The judge 'timm' is there already"):
        judge("timm")(open_judge)
    with pytest.raises(ValueError, match="The evaluator 'labels' is there already"):
        evaluator("labels", Config)(open_judge)


def test_the_own_methods_and_attacks_need_no_plugin():
    assert {"salun", "uce", "projection"} < set(methods())
    assert "relearning" in attacks()
