"""Reports tell what became of the retained concepts that are nearest to the forgotten ones."""

import dataclasses

import torch
from every_part import CLIP
from test_reports import COST, ERASED, SHARES

from erase.bundled import EMOJI
from erase.evaluate.pictures.generation import (
    NEAREST,
    EvaluationConfig,
    EvaluationPictures,
    evaluation_prompts,
    judge_drawn,
)
from erase.evaluate.pictures.judges import open_judge
from erase.evaluate.reports import Report
from erase.evaluate.tables import measured_lines
from erase.prompts.catalogue import Catalogue
from erase.prompts.request import EraseRequest, expand


class Blind:
    """A judge that reads no names."""

    def __init__(self, judge):
        self.embed, self.classify = judge.embed, judge.classify
        self.name, self.fingerprint = judge.name, judge.fingerprint


def test_the_nearest_retained_concepts_are_those_the_judge_reads_most_alike():
    judge, catalogue = open_judge(CLIP, device="cpu"), Catalogue.of_model(EMOJI)
    prompts = expand(EraseRequest(["ghost", "skull"]), catalogue)
    chosen, count = evaluation_prompts(prompts, EvaluationConfig(4, 80))
    torch.manual_seed(0)
    drawn = EvaluationPictures(torch.rand(len(chosen), 3, 64, 64), chosen, count)
    found = judge_drawn(drawn, judge, prompts.labels)
    names = prompts.labels["object"]
    for concept in ("ghost", "skull"):
        others = [n for n in judge.nearest("object", concept, names) if n not in ("ghost", "skull")]
        assert set(others[:NEAREST]) <= set(found.nearest)
    assert len(found.nearest) <= 2 * NEAREST
    named = [prompt.labels["object"] in found.nearest for prompt in chosen[count:]]
    assert found.nearest_retain_accuracy.n == sum(named) > 0
    assert judge_drawn(drawn, Blind(judge), prompts.labels).nearest is None


def test_a_report_names_them_beside_their_figure():
    near = {"nearest_retain_accuracy": SHARES[4], "nearest": ["skull", "alien"]}
    models = {"base": dataclasses.replace(ERASED, **near)}
    models["erased"] = dataclasses.replace(ERASED, **near)
    report = Report({"concepts": ["ghost"]}, "uce", {"steps": 2}, models, COST)
    said = measured_lines(report)
    assert "| retain accuracy of the nearest | 50.0 %" in said
    assert "Nearest by name: skull, alien." in said
    assert Report.from_json(report.to_json()) == report
