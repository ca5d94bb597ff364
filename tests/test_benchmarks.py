import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import CATALOGUE, build_tiny_pipeline

from erase.bundled import JUDGE


@pytest.fixture
def models(monkeypatch, tmp_path) -> list[str]:
    """Arguments that name a tiny model as base and oracle; the benchmarks can be imported."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent / "benchmarks"), *sys.path])
    folder = tmp_path / "tiny"
    build_tiny_pipeline().save_pretrained(folder)
    (folder / "concepts.json").write_text(json.dumps(asdict(CATALOGUE)))
    return [f"--model={folder}", f"--oracle={folder}", f"--judge=local-dir:{JUDGE}"]


def test_the_canvas_bench_measures_methods_base_and_oracle(models, tmp_path, capsys):
    from emoji_canvas import main

    results = tmp_path / "results.json"
    main([
        *models, "--concepts", "ghost", "--rows", "base", "oracle", "projection", "uce",
        "--seeds", "0", "1", "--attacks", "recall", f"--results={results}",
        f"--pictures={tmp_path / 'maps'}",
    ])  # fmt: skip
    rows = json.loads(results.read_text())
    assert set(rows) == {
        "ghost | protocol",
        "ghost | base | 0",
        "ghost | oracle | 0",
        *(f"ghost | {method} | {seed}" for method in ("projection", "uce") for seed in (0, 1)),
    }
    base = rows["ghost | base | 0"]["oracle"]  # the same model
    assert base["prediction_mse"]["forget"]["value"] == 0
    assert rows["ghost | uce | 1"]["oracle"]["prediction_mse"]["forget"]["value"] > 0
    assert {"asr", "leak"} <= set(rows["ghost | uce | 0"])
    assert "asr" not in rows["ghost | uce | 1"]  # attacks are of the first seed
    maps = {path.name for path in (tmp_path / "maps").iterdir()}
    assert maps == {f"ghost-{row}.png" for row in ("base", "oracle", "projection", "uce")}
    assert rows["ghost | uce | 1"]["other_words"]["ghost, plural"]["n"] == 8
    with pytest.raises(SystemExit, match="another protocol"):
        main([*models, "--concepts", "ghost", "--attacks", f"--results={results}"])
    assert "| uce |" in capsys.readouterr().out


def test_concepts_are_erased_in_turn(models, tmp_path):
    from emoji_canvas import main

    results = tmp_path / "results.json"
    main([
        *models, "--concepts", "skull", "pizza", "--sequential", "--rows", "uce", "--seeds", "0",
        "--attacks", f"--results={results}",
    ])  # fmt: skip
    row = json.loads(results.read_text())["skull then pizza | uce | 0"]
    assert set(row["metrics"]["forget_accuracy_by_concept"]) == {"skull", "pizza"}
