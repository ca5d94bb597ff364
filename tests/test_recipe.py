import ast
import json
import logging

import pytest
import torch
import yaml
from test_erasure import make_erasure

from erase.core.delta import DenseDelta
from erase.erasure.algebra import difference
from erase.erasure.card import render_card
from erase.erasure.erasure import Erasure
from erase.erasure.recipe import Base, Recipe
from erase.prompts.request import EraseRequest

WRITTEN = {
    "base": {
        "model": "emoji",
        "family": "sd",
        "fingerprints": {"unet.a": "00"},
        "loads_lora": True,
    },
    "request": {"concepts": ["ghost"], "anchors": ["skull"], "seed": 3},
    "method": "salun",
    "mask": {"kept": 1, "of": 2, "layers": {"unet.a": {"kept": 1, "of": 2}}},
    "truncation": {"rank": 2, "relative_error": 0.5, "left_out": ["unet.b"]},
    "report": {"table": "| forget |"},
    "run": "0123",
    "task": {"config": {"size": 64, "keep": ["a dog"]}, "redirected": {"a ghost": "a skull"}},
}


def edited(path: str, value) -> dict:
    """The recipe with another value at a path such as `base.model`."""
    recipe = json.loads(json.dumps(WRITTEN))
    *parents, last = path.split(".")
    part = recipe
    for name in parents:
        part = part[name]
    part[last] = value
    return recipe


def test_a_recipe_is_read_as_types():
    facts = Recipe.read(WRITTEN)
    assert facts.base == Base("emoji", "sd", {"unet.a": "00"}, True)
    assert (facts.method, facts.run, list(facts.concepts)) == ("salun", "0123", ["ghost"])
    assert facts.layers == {"unet.a": {"kept": 1, "of": 2}}
    assert (facts.truncation.rank, facts.truncation.relative_error) == (2, 0.5)
    assert facts.asked() == EraseRequest(("ghost",), ("skull",), seed=3)


def test_the_card_says_how_the_bases_files_are_opened():
    facts = Recipe.read(edited("base.variant", "fp16"))
    assert 'load_model("emoji", variant="fp16")' in render_card(facts, ["unet.a"])


def test_a_card_is_whole_whatever_its_base_is_called():
    odd = 'a: "b" #1\n---\n```\n# <b>[x](y)*'
    facts = Recipe.read(edited("base", {"model": odd, "model_config": odd}))
    for changed in (["unet.a"], ["model.a"]):
        _, head, card = render_card(facts, changed).split("---\n", 2)
        assert yaml.safe_load(head)["tags"]
        assert sum(line.startswith("```") for line in card.splitlines()) == 2
        code = card.split("```python\n")[1].split("\n```\n")[0]
        assert card.splitlines()[0].count("#") == card.splitlines()[0].count("\\#") + 1
        ast.parse(code)


def test_a_card_names_a_base_where_a_hub_takes_the_name(tmp_path, monkeypatch):
    """A hub refuses a card, and all that is pushed with it, whose base_model is no hub id."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "base").mkdir(parents=True)
    (tmp_path / "base.safetensors").touch()
    here = [str(tmp_path), "./out/base", "out/base", "C:\\base", "base.safetensors"]
    for model in ("emoji", "owner/base-1.5", *here, 'a: "b"\n- c'):
        facts = Recipe.read(edited("base.model", model))
        _, head, card = render_card(facts, ["unet.a"]).split("---\n", 2)
        assert yaml.safe_load(head).get("base_model", model) == model
        assert ("base_model" in head) == (model in ("emoji", "owner/base-1.5"))
        assert json.dumps(model) in card


@pytest.mark.parametrize("part", WRITTEN)
def test_what_an_older_version_did_not_write_is_empty(part):
    left = {name: value for name, value in WRITTEN.items() if name != part}
    assert getattr(Recipe.read(left), part) == getattr(Recipe(), part)
    assert Recipe.read({"base": {}}).base.loads_lora


@pytest.mark.parametrize("path", ["new", "base.new", "request.new", "truncation.new", "mask.new"])
def test_what_a_newer_version_adds_is_kept_and_not_asked_for(path, tmp_path, caplog):
    erasure = Erasure({"unet.a": DenseDelta(torch.ones(2))}, edited(path, {"more": 1}))
    erasure.save_pretrained(tmp_path / "e")
    back = Erasure.from_pretrained(tmp_path / "e")
    assert back.recipe == erasure.recipe
    with caplog.at_level(logging.WARNING):
        assert back.facts.asked() == Recipe.read(WRITTEN).asked()
    assert bool(caplog.messages) == (path == "request.new")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("base", "emoji"),
        ("base.model", 1),
        ("base.loads_lora", "yes"),
        ("base.fingerprints", ["00"]),
        ("base.fingerprints", {"unet.a": 0}),
        ("request", ["ghost"]),
        ("request.concepts", "ghost"),
        ("method", None),
        ("mask", 3),
        ("mask.layers", []),
        ("truncation.rank", "two"),
        ("report", "good"),
        ("task", "ghost"),
        ("task.config", None),
        ("task.config.keep", "a dog"),
        ("task.redirected", ["a ghost"]),
    ],
)
def test_a_part_of_another_type_is_one_sentence_before_anything_else(path, value, tmp_path):
    folder = tmp_path / "e"
    Erasure({"unet.a": DenseDelta(torch.ones(2))}, WRITTEN).save_pretrained(folder)
    (folder / "erasure.json").write_text(json.dumps(edited(path, value) | {"schema": 1}))
    with pytest.raises(ValueError, match=rf"{path.split('.')[-1]} is .*; give"):
        Erasure.from_pretrained(folder)


@pytest.mark.parametrize("text", ["[]", "{", "\xff", '{"schema": 2}'])
def test_what_is_no_recipe_is_one_sentence(text, tmp_path):
    folder = tmp_path / "e"
    Erasure({"unet.a": DenseDelta(torch.ones(2))}, WRITTEN).save_pretrained(folder)
    (folder / "erasure.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="not a readable erasure folder"):
        Erasure.from_pretrained(folder)


def test_a_request_that_nobody_noted_is_one_sentence():
    for recipe in ({}, {"request": {"concepts": []}}):
        with pytest.raises(ValueError, match="does not say what it forgets"):
            Recipe.read(recipe).asked()


def test_a_difference_takes_no_fingerprints_and_leaves_both_as_they_were(tiny_pipeline):
    one, other = make_erasure(tiny_pipeline), make_erasure(tiny_pipeline, 0.2)
    before = json.dumps([one.recipe, other.recipe])
    assert difference(one, other).facts.base.fingerprints == {}
    assert json.dumps([one.recipe, other.recipe]) == before
