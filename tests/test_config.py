"""What every config promises: a value that its field's type does not allow is refused in Python."""

import dataclasses
import importlib
import math
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from jsonargparse import ArgumentParser

import erase
from erase.app.options import with_options
from erase.app.settings import Limits
from erase.attacks import attacks
from erase.cli import build_parser
from erase.methods import methods
from erase.methods.salun import SalUnConfig
from erase.prompts.request import EraseRequest
from erase.support.config import Config, Positive, Share, require_kind
from erase.training.config import TrainedConfig, TrainingConfig

for module in pkgutil.walk_packages(erase.__path__, "erase."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

SAMPLES = {int: 1, str: "class:3", EraseRequest: EraseRequest(["ghost"])}


def derived(base: type = Config) -> Iterator[type]:
    for config in base.__subclasses__():
        if config.__module__.startswith("erase."):
            yield config
            yield from derived(config)


def made(config: type) -> Any:
    """One of its defaults; what has none is given a sample of its type."""
    asked = [field for field in dataclasses.fields(config) if field.init]
    needed = [field for field in asked if field.default is field.default_factory]
    return config(**{field.name: SAMPLES.get(field.type) or made(field.type) for field in needed})


def parts_of(kind: Any) -> Iterator[Any]:
    yield kind
    for part in get_args(kind) if get_origin(kind) is not Literal else ():
        yield from parts_of(part)


CONFIGS = sorted(set(derived()), key=lambda config: config.__qualname__)
FIELDS = [
    pytest.param(config, field.name, field.type, id=f"{config.__name__}.{field.name}")
    for config in CONFIGS
    for field in dataclasses.fields(config)
    if field.init and Any not in parts_of(field.type)
]


def refuses(config: type, name: str, value: Any) -> bool:
    try:
        dataclasses.replace(made(config), **{name: value})
    except ValueError as error:
        return str(error).startswith(f"{name} is {value!r}; ")
    return False


@pytest.mark.parametrize(("config", "name", "kind"), FIELDS)
def test_a_field_refuses_what_is_not_of_its_type(config, name, kind):
    parts = set(parts_of(kind))
    if str not in parts:
        assert refuses(config, name, "zzz")
    if get_origin(kind) is Sequence:
        assert refuses(config, name, "zzz")
    assert refuses(config, name, math.nan)
    assert refuses(config, name, math.inf)
    assert refuses(config, name, object())
    if get_origin(config._kinds[name]) is Annotated:
        assert refuses(config, name, -1)


def test_whatever_is_registered_or_reads_like_a_config_checks_itself():
    entries = [*methods().values(), *attacks().values()]
    assert {entry.config for entry in entries} < set(CONFIGS)
    ours = [module for name, module in sys.modules.items() if name.startswith("erase.")]
    named = {
        thing
        for module in ours
        for name, thing in vars(module).items()
        if name.endswith("Config") and dataclasses.is_dataclass(thing)
    }
    assert {thing for thing in named if thing.__module__.startswith("erase.")} <= {*CONFIGS, Config}


def test_what_trains_is_a_trained_config_and_nothing_else_has_training():
    for method in methods().values():
        fields = {field.name for field in dataclasses.fields(method.config)}
        assert issubclass(method.config, TrainedConfig) == ("training" in fields)


@dataclasses.dataclass(frozen=True)
class Toy(Config):
    """A toy.

    Args:
        count: how many.
        share: how much.
        weight: if any.
        choice: which.
        names: some.
    """

    count: Positive[int] = 3
    share: Share = 0.5
    weight: float | None = None
    choice: Literal["a", "b"] | Literal["c"] = "a"
    names: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Doll(Toy):
    """A toy with a face."""

    face: str = ""


@pytest.mark.parametrize("kind", [Toy, Doll])
@pytest.mark.parametrize(
    ("field", "value", "mend"),
    [
        ("count", 0, "give a number above 0"),
        ("count", 2.0, "give a whole number"),
        ("count", True, "give a whole number"),
        ("share", 1.5, r"give a share in \(0, 1\]"),
        ("share", math.nan, "give a finite number"),
        ("weight", "heavy", "give a number or give nothing"),
        ("choice", "d", "choose one of 'a', 'b' or choose one of 'c'"),
        ("names", "attn2", "give a list"),
        ("names", [3], "give a text"),
    ],
)
def test_a_refusal_names_the_field_the_value_and_what_to_give(kind, field, value, mend):
    with pytest.raises(ValueError, match=f"^{field} is .*; {mend}.$"):
        kind(**{field: value})


def test_a_config_has_no_field_but_its_own_and_plain_types_on_the_command_line():
    assert not dataclasses.fields(Config)
    assert [field.type for field in dataclasses.fields(Toy)][:2] == [int, float]
    parser = ArgumentParser()
    parser.add_class_arguments(Toy, "toy")
    assert "how many. (type: int, default: 3)" in parser.format_help()
    parsed = parser.parse_args(["--toy.count=7", "--toy.names=[x, y]", "--toy.weight=2"])
    assert parser.instantiate(parsed).toy == Toy(7, weight=2.0, names=["x", "y"])


def test_a_config_of_two_parents_keeps_the_ranges_of_both():
    @dataclasses.dataclass(frozen=True)
    class Left(Config):
        left: Positive[int] = 1

    @dataclasses.dataclass(frozen=True)
    class Right(Config):
        right: Positive[int] = 1

    @dataclasses.dataclass(frozen=True)
    class Both(Left, Right):
        own: Positive[int] = 1

    assert Both() == Both(1, 1, 1)
    for name in ("left", "right", "own"):
        with pytest.raises(ValueError, match=f"{name} is 0; give a number above 0"):
            Both(**{name: 0})


@pytest.mark.parametrize("text", [
    '{"density": NaN}', '{"density": Infinity}', '{"density": 1e39}', '{"density": true}',
    '{"training.batch": 1}', '{"density": "0.5"}', '{"mask": 1}', '{"mask": ["top"]}',
    '{"training.max_train_steps": Infinity}', '{"training.max_train_steps": 2.5}',
    '{"training.max_train_steps": true}', '{"training.use_ema": 1}', "[" * 100_000, "[1]", "{",
    '{"density": 1' + "0" * 400 + "}",
], ids=lambda text: text[:36])  # fmt: skip
def test_the_apps_options_are_compared_exactly(text):
    with pytest.raises(ValueError, match=r"; (give|choose)") as caught:
        with_options(SalUnConfig(), text, Limits())
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Literal[1, 2], True), (Literal["a"], ["a"]), (int, True), (float, False), (bool, 1),
     (float, 1e39), (float, -1e300), (float, 10**400), (float, float("nan")), (int, 2.0),
     (Sequence[int], [1, True]), (Sequence[str], "ab")],
)  # fmt: skip
def test_values_are_compared_exactly(kind, value):
    with pytest.raises(ValueError, match=r"^it is .*; (give|choose)"):
        require_kind("it", value, kind)


def test_what_is_counted_has_an_end_and_a_seed_has_none():
    with pytest.raises(ValueError, match=r"max_train_steps is 1000.*up to 2147483647"):
        TrainingConfig(10**30)
    assert EraseRequest(["ghost"], seed=10**30).seed == 10**30


def test_a_name_given_twice_is_refused(tmp_path):
    twice = tmp_path / "twice.yaml"
    twice.write_text("drawing: {steps: 1, steps: 2}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"twice.yaml cannot be read \(it names steps twice\)"):
        build_parser("protocol").parse_args(["--config", str(twice), "--output", "out"])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("run --concept ghost --seed 1 --concept pizza", "concept"),
        ("run --concept=ghost --conc pizza", "concept"),
        ("run --concept ghost --retain skull --retain crown rose", "retain"),
        ("attack out --attack prefix --output b --attack recall", "attack"),
        ("attack out --output b --scales .5 --scales .75", "scales"),
    ],
)
def test_a_list_given_twice_is_refused_and_not_the_later_one(words, name, capsys):
    command, *options = words.split()
    with pytest.raises(SystemExit):
        build_parser(command, options).parse_args(options)
    said = f"erase: --{name} is given twice; give all after one --{name}; see"
    assert capsys.readouterr().err.startswith(said)
