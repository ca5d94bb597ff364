"""Names are taken once, and other packages may bring entries of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from erase.attacks import attacks
from erase.methods import methods, register
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


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, of which one brings a method, and two fail to."""
    sources = {"toy_good": TOY, "toy_taken": TAKEN, "toy_broken": "import no_such_module"}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
        information = tmp_path / f"{name}-1.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (information / "entry_points.txt").write_text(f"[erase.methods]\n{name} = {name}\n")
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


@pytest.mark.parametrize("name", [*methods()])
def test_no_method_takes_anothers_name(name):
    before = methods()[name]
    with pytest.raises(ValueError, match=f"The method '{name}' is there already"):
        register(name, before.config)(before.function)
    assert methods()[name] is before


def test_methods_come_from_other_packages_and_a_broken_one_is_warned_of(packages):
    script = "from erase.methods import methods; print(*methods())"
    said = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert said.stdout.split() == sorted([*methods(), "toy"])
    for name, reason in (("toy_taken", "'salun' is there already"), ("toy_broken", "no_such")):
        assert f"The plugin {name} ({name}) of erase.methods is left out" in said.stderr
        assert reason in said.stderr


def test_the_own_methods_and_attacks_need_no_plugin():
    assert {"salun", "uce", "projection"} < set(methods())
    assert "relearning" in attacks()
