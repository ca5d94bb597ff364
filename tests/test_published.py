import dataclasses

import pytest
from published import DIFFERENCES

from erase.cli import build_parser, parsed
from erase.methods import methods, preset_of


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_is_published_is_what_its_authors_code_computes(name):
    assert DIFFERENCES[name]() < 1e-4


def test_every_preset_has_its_formula():
    presets = {name for name, method in methods().items() if method.published}
    assert presets == set(DIFFERENCES)
    with pytest.raises(ValueError, match="has no preset published"):
        preset_of("projection", "published")


def test_a_preset_fills_in_what_neither_flag_nor_file_says(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("concept: [ghost]\nmethod: rece\npreset: published\nrece: {rounds: 5}\n")
    words = [f"--config={file}", "--rece.uce.rank=3"]
    parser = build_parser("run", words)
    wanted = preset_of("rece", "published")
    first = dataclasses.replace(wanted.uce, rank=3)
    options = parser.instantiate(parsed(parser, words))
    assert options["rece"] == dataclasses.replace(wanted, rounds=5, uce=first)
