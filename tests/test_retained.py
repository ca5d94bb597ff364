"""How far erasures move what is read of the retained, and who says so."""

from dataclasses import replace

import pytest
import torch
from hosts import build_tiny_pipeline, build_tiny_task

from erase.app.figures import report_html
from erase.core.delta import DenseDelta, scale_delta
from erase.evaluate.reports import Cost, Metrics, Report, wilson_share
from erase.evaluate.tables import measured_lines, neighbours_line
from erase.methods.uce import UCEConfig, uce
from erase.tasks.diffusion.retained import retained_moved


def test_a_change_of_half_the_weight_moves_everything_by_half(tiny_task):
    weights = {n: w for names in tiny_task.sites("text").values() for n in names
               for w in [tiny_task.editable()[n].detach()]}  # fmt: skip
    moved = retained_moved(tiny_task, {name: DenseDelta(-w / 2) for name, w in weights.items()})
    assert set(moved.concepts.values()) == {0.5} == set(moved.weights.values())
    assert moved.weights.keys() == weights.keys()
    assert "ghost" not in moved.concepts


def test_it_is_the_ratio_of_norms_over_all_tokens_of_a_concepts_prompts(tiny_task):
    erasure = uce(tiny_task, UCEConfig())
    moved = retained_moved(tiny_task, erasure.deltas)
    concept = next(iter(moved.concepts))
    texts = [p.text for p in tiny_task.prompts.retain if p.labels["object"] == concept]
    rows = tiny_task.readings(texts)["text"].detach().flatten(0, 1)
    energies = torch.zeros(2)
    for name, delta in erasure.deltas.items():
        weight = tiny_task.editable()[name].detach()
        energies += torch.stack([(rows @ part.T).square().sum()
                                 for part in (delta.dense(), weight)])  # fmt: skip
    assert moved.concepts[concept] == pytest.approx(
        float((energies[0] / energies[1]).sqrt()), abs=1e-4
    )
    rows = tiny_task.readings([p.text for p in tiny_task.prompts.retain])["text"].flatten(0, 1)
    for name, delta in erasure.deltas.items():
        weight = tiny_task.editable()[name].detach()
        lengths = [(rows.detach() @ part.T).norm() for part in (delta.dense(), weight)]
        assert moved.weights[name] == pytest.approx(float(lengths[0] / lengths[1]), abs=1e-4)
    shares = list(moved.concepts.values())
    assert shares == sorted(shares, reverse=True)
    twice = {name: scale_delta(delta, 2.0) for name, delta in erasure.deltas.items()}
    found = retained_moved(tiny_task, twice)
    assert found.concepts[concept] == pytest.approx(2 * moved.concepts[concept], abs=2e-4)


def test_where_more_changes_than_what_reads_the_text_nothing_is_said():
    task = build_tiny_task(build_tiny_pipeline(), ("unet", "text_encoder"))
    name = next(name for name in task.editable() if name.startswith("text_encoder"))
    assert retained_moved(task, {name: DenseDelta(torch.zeros(1))}) is None
    alone = build_tiny_task(build_tiny_pipeline(), ("text_encoder",))
    assert retained_moved(alone, {name: DenseDelta(torch.zeros(1))}) is None


@pytest.mark.parametrize("choice", [{"include": ["*conv_in*"]}, {"exclude": ["*attn2*"]}])
def test_where_nothing_that_reads_the_text_may_change_nothing_is_said(choice):
    task = build_tiny_task(build_tiny_pipeline())
    task.config = replace(task.config, **choice)
    assert retained_moved(task, dict.fromkeys(task.editable(), DenseDelta(torch.zeros(1)))) is None


def test_report_and_app_name_the_neighbours_that_are_moved_most():
    share = wilson_share([True] * 4)
    metrics = dict.fromkeys(("base", "erased"), Metrics(share, {"ghost": share}, share))
    moved = {f"name {i}": 0.5 - 0.01 * i for i in range(9)}
    report = Report({"concepts": ["ghost"]}, "uce", {}, metrics, Cost(1, 2, 3, 4),
                    retained_moved=moved)  # fmt: skip
    said = "Of 9 retained concepts it moves what is read of these furthest (of its length): "
    assert neighbours_line(report).startswith(said + "name 0 50 %, name 1 49 %")
    assert said in measured_lines(report)
    assert said in report_html(report)
    assert Report.from_json(report.to_json()) == report
