"""What export writes, held against the name maps of the programs that are to read it."""

import json
import re
from functools import cache
from pathlib import Path

import loaders
import pytest
import torch
from safetensors import safe_open
from test_contract import erase_tiny

from erase.core.activations import projectable_layers
from erase.core.delta import LowRankDelta
from erase.core.names import lora_holds
from erase.erasure.algebra import low_rank
from erase.erasure.programs import (
    NAMINGS,
    READ,
    export_kohya,
    kohya_tensors,
    layer_in_file,
    layers_read,
    naming_for,
)
from erase.models.family import FAMILIES

MAPS = json.loads((Path(__file__).parent / "loaders.json").read_text(encoding="utf-8"))
SWAPPED = "rows swapped"
real_models = cache(loaders.models)


def fits(template: str, path: str) -> bool:
    """Whether a layer's path is one of a template's: `#` is a number, `*` anything."""
    pattern = template.replace(".", r"\.").replace("#", r"\d+").replace(r"\.*", r"\..+")
    return bool(re.fullmatch(".+" if template == "*" else pattern.replace("_in*", "_in.*"), path))


def original(path: str, family: str) -> list:
    """The path that the original code has for a layer, and which part of it the layer is."""
    numbers = iter(re.findall(r"(?<=\.)\d+(?=\.)", path))
    for ours, (theirs, *part) in MAPS["original"].get(family, {}).items():
        if fits(ours, path):
            return [re.sub("#", lambda _: next(numbers), theirs), *part]
    return [path]


def spelled(path: str, prefix: str, swap: list[str]) -> str:
    """A layer's name in a file."""
    if swap:
        path = path.replace(*swap)
        path = path.removesuffix(".0") if path.endswith(".to_out.0") else path
    return prefix + (path if prefix.endswith(".") else path.replace(".", "_"))


def known_names(program: str, naming: str, family: str, paths: dict[str, list[str]]) -> set[str]:
    """Every layer's name in such a file for which the program has a place."""
    names, layers = set(), MAPS["layers"]
    for component, rule in MAPS["reads"][program].get(f"{naming} {family}", {}).items():
        prefix, group, *swap = rule
        templates = [*layers.get(group, MAPS["original"].get(group, ()))]
        if program == "a1111" and component == "unet":
            there = layers["original upsamplers"][family]
            found = layers["a1111 upsamplers"].items()
            templates += [ours for ours, theirs in found if theirs in there]
        of = paths[component]
        if naming in ("original", "a1111") and component == "transformer":
            of = [original(path, family)[0] for path in of]
        literal = [t for t in templates if not re.search(r"[#*(\[]", t)]
        fitting = {path for path in [*of, *literal] if any(fits(t, path) for t in templates)}
        names |= {spelled(path, prefix, swap) for path in fitting}
    return names


def layer_paths(parts) -> dict[str, list[str]]:
    """The paths of what a LoRA can hold, by component."""
    named = {part: projectable_layers(module, part) for part, module in parts.items()}
    return {
        part: [name.split(".", 1)[1] for name in layers if lora_holds(f"{name}.weight")]
        for part, layers in named.items()
    }


@pytest.mark.parametrize("model", ["SD1.5", "SDXL", "SD3.5 medium", "FLUX.1-dev", "PixArt-Sigma"])
def test_what_is_read_is_what_the_programs_maps_know(model):
    family, parts = real_models()[model]
    paths = layer_paths(parts)
    weights = [f"{part}.{path}.weight" for part, of in paths.items() for path in of]
    for naming in {naming for naming, of in READ if of == family}:
        files = {name: layer_in_file(name, naming, family) for name in weights}
        for program in NAMINGS:
            pattern = READ[naming, family].get(program, "(?!)")
            known = known_names(program, naming, family, paths)
            wrong = [
                name for name, layer in files.items()
                if layer and bool(re.fullmatch(pattern, layer)) != (layer in known)
            ]  # fmt: skip
            assert not wrong, (naming, program)


@pytest.mark.parametrize("model", ["SD3.5 medium", "FLUX.1-dev"])
def test_layers_go_where_the_original_code_has_them(model):
    family, parts = real_models()[model]
    for path in layer_paths(parts)["transformer"]:
        theirs, *part = original(path, family)
        last = path.startswith(
            f"transformer_blocks.{len(parts['transformer'].transformer_blocks) - 1}."
        )
        swapped = part == [SWAPPED] or (part == [f"{SWAPPED} in the last block"] and last)
        rows = 4 if path.endswith("proj_mlp") else 2 if swapped else 1
        up = torch.ones(rows, 1)
        up[1:] *= not swapped
        layer = f"lora_unet_{theirs}".replace(".", "_")
        delta = {f"transformer.{path}.weight": LowRankDelta(up, torch.ones(1, 1))}
        written = kohya_tensors(delta, "original", family)[f"{layer}.lora_up.weight"].flatten()
        first = 1 if swapped else part[0] if part and part[0] in range(4) else 0
        there = [first] if swapped else list(range(first, first + rows))
        assert written.nonzero().flatten().tolist() == there, path


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart"])
def test_a_program_reads_what_is_written_for_it(family, tmp_path):
    erasure, pipeline = erase_tiny("projection", "both" if family == "sd" else family)
    parts = {n: module for n, module in pipeline.components.items() if n in COMPONENTS}
    parts = {n: module for n, module in parts.items() if "T5" not in type(module).__name__}
    for program in NAMINGS:
        if family not in NAMINGS[program]:
            continue
        path = export_kohya(erasure, tmp_path / program, program)
        naming = naming_for(program, family)
        with safe_open(path, "pt") as file:
            layers = {re.sub(r"\.(lora_\w+\.weight|alpha)$", "", key) for key in file.keys()}  # noqa: SIM118
        known = known_names(program, naming, family, layer_paths(parts))
        read = layers_read(erasure.deltas, naming, family)[program]
        assert read == len(layers & known)
        assert read >= len(layers) - (program == "sd-scripts")


COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2")


def test_the_tables_erasures_are_what_methods_make():
    salun, pipeline = erase_tiny("salun", "sdxl")
    family = FAMILIES["sdxl"]
    parts = {n: pipeline.components[n] for n in family.components}
    listed = dict(loaders.erasures(family, parts))
    assert set(listed["projection, text"]) == erase_tiny("projection", "sdxl")[0].deltas.keys()
    trained = {name for title, of in listed.items() if title.startswith("SalUn") for name in of}
    # Nothing reads the last layer of a text encoder whose last state but one is taken.
    assert {name for name in trained if name in salun.deltas} == low_rank(salun, 4).deltas.keys()


def test_the_table_of_the_documentation_is_what_the_script_prints():
    page = (Path(__file__).parents[1] / "docs" / "interop.md").read_text(encoding="utf-8")
    assert "\n".join(loaders.table(real_models())) in page
