"""Every table that a person reads, as text."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from erase.evaluate.layers import CHART, Block, blocks_of, save_chart
from erase.evaluate.reports import (
    GAPS,
    AttackReport,
    Distance,
    Figure,
    GapReport,
    Metrics,
    Report,
    area_under,
)
from erase.models.family import Family
from erase.prompts.names import shortened

WORST, NEIGHBOURS, CONCEPTS = 10, 5, "concepts.csv"
BESIDE = {
    "companion accuracy": "companion_accuracy",
    "retain accuracy of the nearest": "nearest_retain_accuracy",
}


def markdown_table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells, whatever text they hold, as a Markdown table; the first is its head."""
    head, *body = ([" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def plain_table(rows: Iterable[Sequence[str]], columns: Sequence[str]) -> str:
    """Rows of cells, each in its column's format: `<30` is 30 wide and to the left."""
    return "\n".join(
        "".join(f"{cell:{column}}" for cell, column in zip(row, columns, strict=True))
        for row in rows
    )


def metric_rows(report: Report) -> list[list[str]]:
    """Name, a cell a model, and n of every figure.

    Those are pooled accuracies, each concept's or, of a long list, the WORST of them, the CLIP
    score, and distances to the oracle.
    """
    models, erased = list(report.metrics.values()), report.metrics["erased"]

    def row(name: str, figures: Sequence[Figure]) -> list[str]:
        return [name, *map(interval, figures), str(figures[0].n)]

    rows = [
        row(name.replace("_", " "), [model.accuracies[name] for model in models])
        for name in erased.accuracies
    ]
    concepts = _by_need(erased) if is_long(report) else list(erased.forget_accuracy_by_concept)
    if len(concepts) > 1:
        by_concept = [model.forget_accuracy_by_concept for model in models]
        rows += [row(f"forget {c}", [one[c] for one in by_concept]) for c in concepts[:WORST]]
    for said, name in BESIDE.items():
        if found := [one for model in models if (one := getattr(model, name))]:
            rows.append(row(said, found))
    if erased.clip_score:
        scores = [f"{m.clip_score.value:.3f}" if m.clip_score else "" for m in models]
        rows.append(["CLIP score, retained", *scores, str(erased.clip_score.n)])
    return rows + _distance_rows(report.distances)


def is_long(report: Report) -> bool:
    """Whether it forgets more concepts than a table shows."""
    return len(report.metrics["erased"].forget_accuracy_by_concept) > WORST


def _by_need(erased: Metrics) -> list[str]:
    """The concepts, those first that still show the most."""
    figures = erased.forget_accuracy_by_concept
    return sorted(figures, key=lambda concept: -figures[concept].value)


def concept_rows(report: Report) -> list[list[str]]:
    """Every forgotten concept, those first that still show the most: shares a model, and n."""
    rows = [["concept", *report.metrics, "n"]]
    for concept in _by_need(report.metrics["erased"]):
        found = [model.forget_accuracy_by_concept[concept] for model in report.metrics.values()]
        rows.append([concept, *(f"{figure.value:g}" for figure in found), str(found[0].n)])
    return rows


def _distance_rows(distances: Mapping[str, Mapping[str, Distance]]) -> list[list[str]]:
    """KID on the judge's features for both sides; the oracle's to itself is nothing to tell."""
    rows = []
    for side, erased in distances.get("erased", {}).items():
        both = (distances["base"][side], erased)
        told = ("{:.4f} [{:.4f}, {:.4f}]".format(one.value, *one.interval) for one in both)
        rows.append([f"KID to oracle, {side}", *told, "", str(erased.n[0])])
    return rows


def interval(figure: Figure) -> str:
    """`87.5 % [80.1, 92.4]`, and without an interval `87.5 %`."""
    if not figure.interval:
        return f"{100 * figure.value:.1f} %"
    low, high = figure.interval
    return f"{100 * figure.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def measured_lines(report: Report) -> str:
    """The metrics of a report as a Markdown table with its protocol under it."""
    table = markdown_table([["metric", *report.metrics, "n"], *metric_rows(report)])
    beside = f"{_left_out(report)}{neighbours_line(report)}{_nearest(report)}"
    return f"{table}\n\n{beside}Protocol: {protocol_of(report)}."


def protocol_of(report: Report | AttackReport | GapReport) -> str:
    """A report's protocol in one line."""
    return "; ".join(f"{key} {_plain(value)}" for key, value in report.protocol.items())


def _nearest(report: Report) -> str:
    """Which retained concepts are nearest to the forgotten ones."""
    names = report.metrics["erased"].nearest
    return f"Nearest by name: {shortened(names)}.\n\n" if names else ""


def neighbours_line(report: Report) -> str:
    """The retained concepts that an erasure of what reads the text moves most, as a line."""
    if not (moved := report.retained_moved):
        return ""
    shares = [f"{name} {100 * share:.0f} %" for name, share in list(moved.items())[:NEIGHBOURS]]
    return (f"Of {len(moved)} retained concepts it moves what is read of these furthest (of its "
            f"length): {', '.join(shares)}.\n")  # fmt: skip


def _left_out(report: Report) -> str:
    """Of a long list, that the table has the worst alone."""
    count = len(report.metrics["erased"].forget_accuracy_by_concept)
    said = f"Of {count} concepts the {WORST} that show most; {CONCEPTS} has all.\n"
    return said if is_long(report) else ""


def _plain(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(
        f"{key} ({_settings(item)})" if isinstance(item, Mapping) else f"{item} {key}"
        for key, item in value.items()
    )


def _settings(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in config.items())


def summary_table(report: Report) -> str:
    """The short table the command line ends with."""
    rows = [["", *report.metrics, "n"], *metric_rows(report)]
    table = plain_table(rows, ["<30", *[">27"] * len(report.metrics), ">6"])
    cost = f"{report.cost.seconds:.0f} s, {report.cost.artefact_bytes / 1e6:.1f} MB"
    return f"{table}\n{_left_out(report)}{neighbours_line(report)}{cost}"


def attack_table(report: AttackReport) -> str:
    """Pre-ASR, ASR, budget and n of every attack, hits at lower strengths, verdict, protocol."""
    oracle = report.oracle
    head = ["attack", "Pre-ASR", "ASR", *(["ASR of the oracle"] if oracle else [])]
    rows = [[*head, "UNet evaluations", "n"]]
    for name, found in report.attacks.items():
        shares = [found.pre_asr, found.asr, *([oracle[name].asr] if oracle else [])]
        rows.append([name, *map(interval, shares), str(found.forward_passes), str(found.asr.n)])
    blank = [""] if oracle else []
    rows += [
        [f"strength {scale}", "", interval(leak), *blank, "", str(leak.n)]
        for scale, leak in report.strength.items()
    ]
    curves = "".join(f"{line}\n\n" for line in _curve_lines(report))
    said = f"Verdict: {report.verdict}\n\nProtocol: {protocol_of(report)}."
    return f"{markdown_table(rows)}\n\n{curves}{said}"


def _curve_lines(report: AttackReport) -> Iterator[str]:
    """What each relearning brought back after so many steps, and the area under it."""
    sides = {"": report.attacks, " of the oracle": report.oracle}
    for side, attacks in sides.items():
        for name, found in attacks.items():
            if curve := found.details.get("curve"):
                shares = (f"{100 * share:.1f} % at {step}" for step, share in curve.items())
                area = f"area under the curve {area_under(curve):.3f}"
                yield f"{name}{side}, by steps: {', '.join(shares)}; {area}."


def gap_table(report: GapReport) -> str:
    """Every figure of a classifier's three models, the gap to Retrain beside them, the protocol."""
    rows = [["figure", "original", "retrained", "unlearned", "gap"]]
    for key, goal in report.retrained.items():
        values = (report.original[key], goal, report.unlearned[key])
        gap = f"{report.unlearned[key] - goal:+.2f}"
        rows.append([key.replace("_", " "), *(f"{value:.2f}" for value in values), gap])
    counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in report.n.items() if n)
    said = (
        f"Average gap over {', '.join(GAPS).replace('_', ' ')}: "
        f"{report.average_gap:.2f} points; ToW {report.tow:.3f}. n: {counts}. "
        f"Verdict: {report.verdict}."
    )
    if found := report.u_lira:
        said += (
            f" U-LiRA, {found.shadows} shadows a side, n {found.n}: AUC {found.auc:.3f}, TPR "
            f"{found.tpr_at_1_percent_fpr:.3f} at 1 % FPR."
        )
    return f"{markdown_table(rows)}\n\n{said}\n\nProtocol: {protocol_of(report)}."


def block_table(blocks: Iterable[Block], kind: str = "block") -> str:
    """How many weights each has, which share of them may change, and its share of the saliency."""
    rows = [[kind, "weights", "kept", "saliency"]]
    for block in blocks:
        share = "" if block.saliency_share is None else f"{100 * block.saliency_share:.1f} %"
        kept = f"{100 * block.kept / block.weights:.1f} %"
        rows.append([block.name, str(block.weights), kept, share])
    return markdown_table(rows)


def mask_section(layers: Mapping[str, Mapping[str, Any]] | None, folder: Path) -> str:
    """Where a mask lies, by block with the chart, and by tensor folded away, as Markdown.

    The chart is drawn into the folder. Without a mask it is nothing.
    """
    if not layers:
        return ""
    save_chart(blocks_of(layers), folder / CHART)
    each = [
        Block(name, layer["of"], layer["kept"], layer.get("saliency_share"))
        for name, layer in layers.items()
    ]
    return (
        f"\nWhere the mask lies:\n\n{block_table(blocks_of(layers))}\n\n![by block]({CHART})\n\n"
        f"<details><summary>By tensor</summary>\n\n{block_table(each, 'tensor')}\n\n</details>\n"
    )


def families_table(families: Iterable[Family], methods: Sequence[str]) -> str:
    """What may change in each family, where text enters, and the methods, which serve all."""
    rows = [["family", "pipeline", "may change", "text enters at", "loads LoRA", "methods"]]
    for family in families:
        enters = ", ".join(pattern for patterns in family.enters.values() for pattern in patterns)
        loads = "yes" if family.loads_lora else "no"
        changed = ", ".join(family.components)
        rows.append(
            [family.name, family.pipeline.__name__, changed, enters, loads, ", ".join(methods)]
        )
    return markdown_table(rows)


def figure_lines(report: Mapping[str, Any]) -> str:
    """The figures of an evaluation, one evaluator a line, with the hash of its protocol."""
    return "\n".join(
        f"{name} (protocol {figures['protocol_hash']}): "
        + json.dumps({k: v for k, v in figures.items() if not k.startswith("protocol")})
        for name, figures in report["figures"].items()
    )
