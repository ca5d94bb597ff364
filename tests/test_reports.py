import dataclasses
import json
import re

import pytest

from erase.app.figures import markdown_table as app_table
from erase.evaluate.reports import (
    AttackFigures,
    AttackReport,
    Cost,
    Distance,
    Figure,
    GapReport,
    LikelihoodRatioAttack,
    Metrics,
    Report,
    area_under,
    wilson_share,
)
from erase.evaluate.tables import (
    attack_table,
    gap_table,
    markdown_table,
    measured_lines,
    metric_rows,
    plain_table,
    summary_table,
)

SHARES = [wilson_share([True] * hits + [False] * (8 - hits)) for hits in range(9)]
BASE = Metrics(SHARES[8], {"ghost": SHARES[8]}, SHARES[7], SHARES[6], clip_score=Figure(1, 8))
ERASED = Metrics(SHARES[0], {"ghost": SHARES[0]}, SHARES[6], SHARES[5])
FAR = {"forget": Distance(0.5, (0.25, 0.75), (3, 4))}
COST = Cost(1.5, 2, 3, 4)
ROW = {"forget_accuracy": 3.0}
REPORTS = [
    Report({"concepts": ["ghost"]}, "uce", {"steps": 2}, {"base": BASE, "erased": ERASED}, COST),
    Report(
        {"concepts": ["ghost"]}, "uce", {}, {"base": BASE, "erased": ERASED, "oracle": BASE}, COST,
        {"base": FAR, "erased": FAR},
    ),
    AttackReport(
        None, ["ghost"], {"seed": 0}, {"recall": AttackFigures(SHARES[1], SHARES[2], 9)},
        {"recall": AttackFigures(SHARES[3], SHARES[4], 9, {"prompt": "a"})}, {0.5: SHARES[1]},
    ),
    GapReport(ROW, ROW, ROW, ROW, 0.0, 1.0, "within", {"forget": 2}, None),
    GapReport(
        ROW, ROW, ROW, ROW, 0.0, 1.0, "within", {"forget": 2}, 1.5,
        LikelihoodRatioAttack(0.5, 0.1, 2, 7), "class:3 of digits", "ssd", {"seed": 0},
    ),
]  # fmt: skip


@pytest.mark.parametrize("report", REPORTS)
def test_what_is_read_is_what_was_written(report):
    written = json.dumps(report.to_json())
    again = type(report).from_json(json.loads(written))
    assert again == report
    assert json.dumps(again.to_json()) == written


@pytest.mark.parametrize("n", [1, 7, 96])
def test_the_ends_of_wilsons_interval_are_two_sides_of_one_test(n):
    for hits in range(n + 1):
        share = wilson_share([True] * hits + [False] * (n - hits))
        for end in share.interval:
            # the share lies 1.96 standard errors from either end, taken at that end
            squared = 1.959964**2 * end * (1 - end) / n
            assert (hits / n - end) ** 2 == pytest.approx(squared, abs=5e-4)
        assert 0 <= share.interval[0] <= share.value <= share.interval[1] <= 1


def test_tables_keep_every_cell_in_its_column():
    rows = [["", "base", "n"], ["forget accuracy", "87.5 %", "8"]]
    head, rule, row = markdown_table(rows).splitlines()
    assert [len(line.split(" | ")) for line in (head, rule, row)] == [3, 3, 3]
    assert [cell.strip() for cell in row.strip("|").split("|")] == rows[1]
    plain = plain_table(rows, ["<20", ">10", ">4"]).splitlines()
    assert [line[20:30].strip() for line in plain] == ["base", "87.5 %"]
    assert [len(line) for line in plain] == [34, 34]


@pytest.mark.parametrize("report", REPORTS)
def test_a_table_tells_the_protocol_under_it(report):
    tables = {Report: measured_lines, AttackReport: attack_table, GapReport: gap_table}
    configs = {"recall": {"strength": 0.8}}
    told = {"model": "emoji", "seed": 3, "labels": {"object": 64}, "configs": configs}
    said = tables[type(report)](dataclasses.replace(report, protocol=told))
    line = "model emoji; seed 3; labels 64 object; configs recall (strength 0.8)"
    assert said.splitlines()[-1] == f"Protocol: {line}."


@pytest.mark.parametrize(
    "name", ["a|b", "|", "a\nb", "|\n|", "\u043a\u043e\u0442 | \U0001f47b", "x" * 500]
)
def test_names_leave_tables_whole_whatever_they_hold(name):
    models = dict.fromkeys(
        ("base", "erased"),
        dataclasses.replace(ERASED, forget_accuracy_by_concept={name: SHARES[0], "c": SHARES[1]}),
    )
    report = Report({"concepts": [name, "c"]}, "uce", {}, models, COST)
    rows = [line for line in measured_lines(report).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(metric_rows(report))
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {6}
    shown = app_table(measured_lines(report))
    assert shown.count("<tr>") == len(rows) - 1
    assert f">forget {' '.join(name.split())}<" in shown


def test_every_figure_in_a_table_stands_in_a_column_of_its_own_with_its_interval():
    report = REPORTS[1]
    for text in (measured_lines(report), summary_table(report)):
        for far in report.distances["erased"].values():
            low, high = far.interval
            assert text.count(f" {far.value:.4f} [{low:.4f}, {high:.4f}]") == 2
    widest = dataclasses.replace(SHARES[8], interval=(1.0, 1.0))
    wide = dataclasses.replace(BASE, forget_accuracy=widest)
    of_wide = dataclasses.replace(report, metrics=dict.fromkeys(report.metrics, wide))
    assert summary_table(of_wide).count(" 100.0 % [100.0, 100.0]") == 3


def attacked(oracle, untried=()):
    found = {"recall": SHARES[1], "prefix": SHARES[8]}
    curve = {"curve": {0: 0.0, 10: 0.5, 20: 1.0}}
    attacks = {n: AttackFigures(SHARES[0], share, 9, curve) for n, share in found.items()}
    beside = {name: AttackFigures(SHARES[0], SHARES[2], 9) for name in found} if oracle else {}
    return AttackReport("uce", ["ghost"], {}, attacks, beside, {}, list(untried))


def test_a_verdict_says_which_attacks_tell_the_model_from_one_that_never_learned():
    said = attacked(oracle=True, untried=["p4d"]).verdict
    inside, outside = said.split("; outside it under ")
    assert "recall 12.5 % of [7.1, 59.1]" in inside
    assert outside == "prefix 100.0 % of [7.1, 59.1]; not tried: p4d."
    report = attacked(oracle=False)
    assert "is not known, for no oracle was attacked." in report.verdict
    assert report.to_json()["verdict"] == report.verdict
    assert f"Verdict: {report.verdict}" in attack_table(report)


def test_relearning_is_told_as_a_curve_with_the_area_under_it():
    assert area_under({0: 0.0, 10: 0.5, 20: 1.0}) == 0.5
    assert area_under({"0": 0.0, "10": 1.0, "40": 1.0}) == 0.875
    line = "prefix, by steps: 0.0 % at 0, 50.0 % at 10, 100.0 % at 20; area under the curve 0.500."
    assert line in attack_table(attacked(oracle=False)).splitlines()
