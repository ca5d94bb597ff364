"""Reports tell what became of what is nearest to the forgotten concepts, and stands beside them."""

import dataclasses

import pytest
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
from erase.evaluate.reports import Report, wilson_share
from erase.evaluate.tables import measured_lines
from erase.prompts.catalogue import Catalogue
from erase.prompts.request import EraseRequest, expand
from erase.runs.attack import _judged_by


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
    there = {prompt.labels["object"] for prompt in chosen[count:]}
    near = []
    for concept in ("ghost", "skull"):
        near += [n for n in judge.nearest("object", concept, names) if n in there][:NEAREST]
    assert found.nearest == list(dict.fromkeys(near))
    named = [prompt.labels["object"] in found.nearest for prompt in chosen[count:]]
    assert found.nearest_retain_accuracy.n == sum(named) > 0
    assert judge_drawn(drawn, Blind(judge), prompts.labels).nearest is None


def test_what_is_not_retained_is_not_among_the_nearest():
    judge, retained = open_judge(CLIP, device="cpu"), ["dog", "car", "pizza"]
    plain = expand(EraseRequest(["ghost"], anchors=["sheet"], retain=retained), None)
    of_few = expand(EraseRequest(["ghost"], retain=["skull", "pizza"]), Catalogue.of_model(EMOJI))
    for prompts, kept in ((plain, retained), (of_few, ["skull", "pizza"])):
        chosen, count = evaluation_prompts(prompts, EvaluationConfig(2, 40))
        drawn = EvaluationPictures(torch.rand(len(chosen), 3, 64, 64), chosen, count)
        found = judge_drawn(drawn, judge, prompts.labels)
        assert sorted(found.nearest) == sorted(kept)
        assert found.nearest_retain_accuracy.n == len(chosen) - count


class Seeing:
    """A judge to which every picture shows the same."""

    name = fingerprint = "seeing"

    def __init__(self, **seen):
        self.seen = seen

    def embed(self, pictures):
        return pictures.flatten(1)[:, :4]

    def classify(self, embeddings, kind, labels):
        return [self.seen[kind]] * len(embeddings)


def test_companions_are_what_else_the_forget_prompts_name_and_no_retained_prompt_counts():
    catalogue = Catalogue.of_model(EMOJI)
    for asked, own, other in (("ghost", "object", "style"), ("ink style", "style", "object")):
        prompts = expand(EraseRequest([asked]), catalogue)
        chosen, count = evaluation_prompts(prompts, EvaluationConfig(24, 24))
        drawn = EvaluationPictures(torch.rand(len(chosen), 3, 8, 8), chosen, count)
        named = [prompt.labels[other] for prompt in chosen[:count] if other in prompt.labels]
        judge = Seeing(**{own: prompts.labels[own][0], other: named[0]})
        found = judge_drawn(drawn, judge, prompts.labels).companion_accuracy
        assert found.n == len(named)
        assert found.value == round(named.count(named[0]) / len(named), 4) > 0
    both = expand(EraseRequest(["ghost", "ink style"]), catalogue)
    chosen, count = evaluation_prompts(both, EvaluationConfig(24, 24))
    named = [len(set(one.labels) - set(one.kinds)) for one in chosen[:count]]
    drawn = EvaluationPictures(torch.rand(len(chosen), 3, 8, 8), chosen, count)
    judge = Seeing(object="ghost", style="ink")
    assert judge_drawn(drawn, judge, both.labels).companion_accuracy.n == sum(named) < count


@pytest.mark.parametrize("concepts", [["ghost"], ["ink style"], ["ghost", "ink style"]])
def test_no_figure_counts_more_samples_than_pictures_were_drawn(concepts):
    prompts = expand(EraseRequest(concepts), Catalogue.of_model(EMOJI))
    chosen, count = evaluation_prompts(prompts, EvaluationConfig(8, 40))
    drawn = EvaluationPictures(torch.rand(len(chosen), 3, 64, 64), chosen, count)
    found = judge_drawn(drawn, open_judge(CLIP, device="cpu"), prompts.labels)
    kept = found.cross_retain_accuracy, found.clip_score, found.nearest_retain_accuracy
    for figure in filter(None, (found.retain_accuracy, *kept)):
        assert figure.n <= len(chosen) - count
    for figure in filter(None, (found.forget_accuracy, found.companion_accuracy)):
        assert figure.n <= count
    kinds = {kind for one in chosen[count:] for kind in one.kinds}
    seen = {kind: [one.labels[kind] for one in chosen[count:]] for kind in kinds}
    judge = Seeing(object="alien", style="noto")
    share = sum(seen[k].count(judge.seen[k]) for k in kinds) / sum(map(len, seen.values()))
    found = judge_drawn(drawn, judge, prompts.labels).retain_accuracy
    assert found.value == round(share, 4)
    assert found.interval[0] <= found.value <= found.interval[1]


@pytest.mark.parametrize("seen", [("ghost", "noto"), ("alien", "ink"), ("alien", "noto")])
def test_attacks_count_as_shown_what_reports_count(seen):
    prompts = expand(EraseRequest(["ghost", "ink style"]), Catalogue.of_model(EMOJI))
    judge, pictures = (
        Seeing(object=seen[0], style=seen[1]),
        torch.rand(len(prompts.forget), 3, 8, 8),
    )
    both = [*prompts.forget, *prompts.retain[:1]]
    drawn = EvaluationPictures(torch.rand(len(both), 3, 8, 8), both, len(prompts.forget))
    hits = _judged_by(judge, prompts)(pictures, prompts.forget)
    assert wilson_share(hits) == judge_drawn(drawn, judge, prompts.labels).forget_accuracy


def test_a_report_names_them_beside_their_figure():
    near = {"nearest_retain_accuracy": SHARES[4], "nearest": ["skull", "alien"]}
    near["companion_accuracy"] = SHARES[4]
    models = {"base": dataclasses.replace(ERASED, **near)}
    models["erased"] = dataclasses.replace(ERASED, **near)
    report = Report({"concepts": ["ghost"]}, "uce", {"steps": 2}, models, COST)
    said = measured_lines(report)
    assert "| companion accuracy | 50.0 %" in said
    assert "| retain accuracy of the nearest | 50.0 %" in said
    assert "Nearest by name: skull, alien." in said
    assert Report.from_json(report.to_json()) == report
