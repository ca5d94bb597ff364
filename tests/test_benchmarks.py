import importlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hosts import CATALOGUE, build_tiny_pipeline
from observation import Observation
from tiny_classes import z_image

from erase.bundled import JUDGE
from erase.core.delta import DenseDelta, truncate_delta
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.reports import AttackReport
from erase.models.family import STATES
from erase.models.opening import load_model
from erase.prompts.catalogue import Concept, Sampling
from erase.prompts.request import EraseRequest
from erase.runs.erase import RunConfig, run
from erase.tasks.diffusion.places import TEXT

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch) -> None:
    """The benchmarks can be imported."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


@pytest.fixture
def models(tmp_path) -> list[str]:
    """Arguments that name a tiny model as base and oracle."""
    folder = tmp_path / "tiny"
    build_tiny_pipeline().save_pretrained(folder)
    (folder / "concepts.json").write_text(json.dumps(asdict(CATALOGUE)))
    return [f"--model={folder}", f"--oracle={folder}", f"--judge=local-dir:{JUDGE}"]


def test_the_canvas_bench_measures_methods_base_and_oracle(models, tmp_path, capsys):
    from emoji_canvas import main

    results = tmp_path / "results.json"
    main([
        *models, "--concepts", "ghost", "--rows", "base", "oracle", "projection", "uce",
        "--seeds", "0", "1", "--attacks", "recall", f"--results={results}", "--jobs=2",
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
    assert base["prediction_mse"]["forget"]["value"] == pytest.approx(0, abs=1e-8)
    assert rows["ghost | uce | 1"]["oracle"]["prediction_mse"]["forget"]["value"] > 0
    assert {"asr", "leak"} <= set(rows["ghost | uce | 0"])
    assert "asr" not in rows["ghost | uce | 1"]  # attacks are of the first seed
    maps = {path.name for path in (tmp_path / "maps").iterdir()}
    assert maps == {f"ghost-{row}.png" for row in ("base", "oracle", "projection", "uce")}
    assert rows["ghost | uce | 1"]["other_words"]["ghost, plural"]["n"] == 4
    with pytest.raises(SystemExit, match="another protocol"):
        main([*models, "--concepts", "ghost", "--attacks", f"--results={results}"])
    assert "| uce |" in capsys.readouterr().out


def test_headline_attacks_are_told_seed_by_seed_and_never_pooled(models, tmp_path, capsys):
    from headline import main, table
    from intervals import mean_interval

    named = {name: value for name, value in (one[2:].split("=", 1) for one in models)}
    erasure, output = tmp_path / "erasure", tmp_path / "headline"
    asked = EraseRequest(["ghost"])
    run(RunConfig(asked, named["model"], "uce", evaluate=False), erasure)
    command = [str(erasure), *models, "--prompts=2", f"--output={output}"]
    main([*command, "--attacks", "relearning", "--seeds", "0", "1"])
    said, kept = capsys.readouterr().out, json.loads((output / "headline.json").read_text())
    for seed in ("0", "1"):
        assert json.loads((output / seed / "attacks.json").read_text()) == kept[seed]
        for side in ("attacks", "oracle"):
            assert kept[seed][side]["relearning"]["asr"]["n"] == 2
    reports = {int(seed): AttackReport.from_json(kept[seed]) for seed in ("0", "1")}
    assert table(reports) in said
    areas = [100 * report.attacks["relearning"].details["area"] for report in reports.values()]
    mean, half = mean_interval(areas)
    shares = " | ".join(f"{area:.1f} %" for area in areas)
    assert f"| relearning, area | erased | {shares} | {mean:.1f} ± {half:.1f} |" in said
    main([*command, "--attacks", "relearning", "--seeds", "0", "1"])  # nothing is missing
    assert table(reports) in capsys.readouterr().out
    with pytest.raises(SystemExit, match="another protocol"):
        main([*command, "--attacks", "recall", "--seeds", "0"])


def test_shared_blocks_are_measured_beside_where_text_alone_passes(tmp_path, capsys):
    from single_stream import main

    pipeline, folder, results = z_image(), tmp_path / "tiny", tmp_path / "results.json"
    pipeline.save_pretrained(folder)
    catalogue = replace(CATALOGUE, sampling=Sampling(2, 3.0, 32))
    (folder / "concepts.json").write_text(json.dumps(asdict(catalogue)))
    main([
        f"--model={folder}", f"--judge=local-dir:{JUDGE}", "--concepts", "ghost", "--steps=2",
        "--rows", "projection", "projection, shared", "--forget-pictures=4", "--retain-pictures=4",
        f"--results={results}", f"--pictures={tmp_path / 'grids'}",
    ])  # fmt: skip
    rows = json.loads(results.read_text())
    names = ("base", "projection", "projection, shared")
    assert set(rows) == {"ghost | protocol", *(f"ghost | {name} | 0" for name in names)}
    alone, shared = (rows[f"ghost | {name} | 0"] for name in names[1:])
    assert alone["weights"] < shared["weights"]
    assert alone["bytes"] < shared["bytes"]
    assert alone["retain_accuracy"]["n"] == 4
    assert len([*(tmp_path / "grids").iterdir()]) == 3
    assert "| projection, shared |" in capsys.readouterr().out


def test_the_page_on_families_holds_what_was_measured_of_shared_blocks():
    from ledger import Ledger
    from single_stream import RESULTS, table

    ledger = Ledger(RESULTS)
    concepts = list(dict.fromkeys(key[0] for key in ledger))
    page = (BENCHMARKS.parent / "docs" / "families.md").read_text()
    for concept in concepts:
        assert table(ledger, [concept], [0]) in page


def test_concepts_are_erased_in_turn(models, tmp_path):
    from emoji_canvas import main

    results = tmp_path / "results.json"
    main([
        *models, "--concepts", "skull", "pizza", "--sequential", "--rows", "uce", "--seeds", "0",
        "--attacks", f"--results={results}",
    ])  # fmt: skip
    row = json.loads(results.read_text())["skull then pizza | uce | 0"]
    assert set(row["metrics"]["forget_accuracy_by_concept"]) == {"skull", "pizza"}


def test_an_oracle_is_measured_and_observed(models, tmp_path):
    from oracles import measured

    tiny, judge = load_model(str(tmp_path / "tiny")), ClipJudge(f"local-dir:{JUDGE}")
    figures = measured(tiny, tiny, judge, [Concept("ghost", "object")], tmp_path / "ghost")
    assert figures["forget_accuracy"]["n"] == 256
    assert figures["concept_seen_elsewhere"]["n"] == 128
    assert figures["chance"] == 1 / len(CATALOGUE.objects)
    kept = Observation.load(tmp_path / "ghost.safetensors")
    assert len(kept.features["forget"]) == 32
    assert (tmp_path / "ghost.png").exists()


def test_the_page_on_classifiers_holds_what_the_results_hold(capsys):
    from classifier_table import main

    main([])
    tables = capsys.readouterr().out
    assert tables.count("### ") == 7
    assert tables.strip() in (BENCHMARKS / "classifiers.md").read_text()


@pytest.mark.parametrize("model", ["resnet", "vit"])
def test_all_that_was_measured_of_classifiers_is_printed(model, capsys):
    from classifier_table import main

    path = BENCHMARKS / "results" / f"classifiers-{model}.json"
    main([f"--results={path}", "--full"])
    printed = capsys.readouterr().out
    keys = [key.split(" | ") for key in json.loads(path.read_text())]
    assert printed.count(f"### {model}, ") == 7
    for key in keys:
        if key[0] == "once":
            assert f"- {key[1]}: " in printed
        elif key[0].startswith("random"):  # of classes, one row has two seeds alone
            assert key[2] == "indices" or key[2].replace("_", " ") in printed
    assert "salun, bottom mask minus salun's" in printed


def test_the_page_on_lists_holds_what_the_results_hold():
    from ledger import Ledger
    from lists import RESULTS, tables

    page = (BENCHMARKS / "README.md").read_text()
    for table in tables(Ledger(RESULTS)):
        assert table in page


@pytest.mark.parametrize(
    ("file", "titles"),
    [("emoji_canvas", ["ghost"]), ("emoji_canvas_20_steps", ["ink style", "dagger and bomb"])],
)
def test_the_page_on_pictures_holds_what_the_results_hold(file, titles):
    from canvas_table import BRIEF, whole_table
    from ledger import Ledger

    ledger = Ledger(BENCHMARKS / "results" / f"{file}.json")
    page = (BENCHMARKS / "README.md").read_text()
    for title in titles:
        assert whole_table(ledger, title, BRIEF) in page


def test_all_that_was_measured_of_pictures_is_printed(capsys):
    from canvas_table import main

    main(["--full"])
    printed = capsys.readouterr().out
    for key in json.loads((BENCHMARKS / "results" / "emoji_canvas.json").read_text()):
        title, row = key.split(" | ")[:2]
        assert title == "once" or f"\n{title}:" in f"\n{printed}"
        assert row in ("protocol",) or f"| {row} |" in printed or f"- {row}: " in printed


@pytest.mark.parametrize("command", ["classifier_table", "canvas_table"])
def test_results_that_are_not_there_are_refused(command, tmp_path, capsys):
    main = importlib.import_module(command).main
    with pytest.raises(SystemExit):
        main([f"--results={tmp_path / 'none.json'}"])
    assert "there is no such file" in capsys.readouterr().err


def test_the_yardstick_sees_a_bit_a_figure_and_a_missing_file_but_no_seconds(tmp_path):
    from yardstick import differing, record

    def made(name: str, byte: int = 0, seconds: float = 1.0, accuracy: float = 0.5) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "deltas.safetensors").write_bytes(bytes(999) + bytes([byte]))
        cost = {"seconds": seconds, "artefact_bytes": 1000}
        report = {"cost": cost, "metrics": {"forget": [accuracy, float("nan")]}}
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "report.md").write_text(f"{accuracy} forgotten. Cost: {seconds} s\n")
        return folder

    before = record(made("before"))
    assert not differing(before, record(made("slower", seconds=22.75)))
    assert differing(before, record(made("bit", byte=1))) == ["deltas.safetensors"]
    figure = ["report.json:metrics.forget.0", "report.md"]
    assert differing(before, record(made("figure", accuracy=0.75))) == figure
    alone = made("alone")
    (alone / "report.md").unlink()
    assert differing(before, record(alone)) == ["report.md"]


def test_the_yardstick_tells_wanted_differences_from_others(monkeypatch):
    import yardstick

    before, after = ({"flags": {"kept": "a", "changed": value}} for value in "ab")
    assert yardstick.table(before, before)[1]
    text, clean = yardstick.table(before, after)
    assert not clean
    assert "differ in 1 of 2: changed |" in text
    monkeypatch.setattr(yardstick, "WANTED", {"flags ch*": "Changed on purpose."})
    text, clean = yardstick.table(before, after)
    assert clean
    assert "Changed on purpose." in text


def test_the_yardstick_tries_the_flags_of_any_method():
    from yardstick_steps import accepted

    assert accepted(["run", "--concept=ghost", "--uce.prompts=5", "--esd.guidance=2"])
    assert not accepted(["run", "--concept=ghost", "--uce.guidance=2"])


def test_the_page_on_shapes_holds_what_the_results_hold():
    from ledger import Ledger
    from list_shapes import RESULTS, table

    assert table(Ledger(RESULTS)) in (BENCHMARKS / "README.md").read_text()


def test_how_far_outputs_move_and_what_a_cut_costs_is_told_of_every_form(tiny_task, monkeypatch):
    import list_shapes

    weights = {name: tiny_task.editable()[name].detach() for name in tiny_task.sites(TEXT)[STATES]}
    dense = {name: DenseDelta(0.5 * weight) for name, weight in weights.items()}
    low = {name: truncate_delta(delta, len(delta.values)) for name, delta in dense.items()}
    for deltas in (dense, low):
        found = list_shapes.moved(tiny_task, deltas, list_shapes.captions())
        assert found.shape == (-(-len(deltas) // list_shapes.THIRD), list_shapes.FIFTY)
        assert torch.allclose(found, torch.tensor(0.5), atol=1e-5)
        assert 0 < list_shapes.error_in_half(deltas) < 2**-10
    monkeypatch.setattr(list_shapes, "CUT_RANK", 1)
    short, error = list_shapes.cut(dense)
    singular = [torch.linalg.svdvals(delta.values) for delta in dense.values()]
    lost = [float(part[1:].norm() / part.norm()) for part in singular[:: list_shapes.THIRD]]
    assert {delta.rank for delta in short.values()} == {1}
    assert error == pytest.approx(sum(lost) / len(lost), abs=1e-5)
    assert len(set(list_shapes.captions())) > list_shapes.FIFTY // 2


def test_a_base_of_eight_bits_is_one_in_bfloat16_and_moves_a_closed_form(monkeypatch, capsys):
    import rounding

    weights = torch.nn.Linear(9, 7)
    wanted = weights.weight.detach().bfloat16().float()
    rounding.round_to(weights, 8)
    assert torch.equal(weights.weight, wanted)
    monkeypatch.setattr(sys, "argv", ["rounding.py", "--bits", "8", "14", "--methods", "uce"])
    rounding.main()
    row = capsys.readouterr().out.splitlines()[-1]
    near, exact = (cell.split(",") for cell in row.strip("| ").split(" | ")[1:])
    assert 0 < float(near[0]) <= float(near[1])
    assert [float(share) for share in exact] == [0, 0]  # it ships in float16
