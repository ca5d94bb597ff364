"""Evaluate: every measured erasure in one table, and UA, IRA and CRA cell by cell."""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import pandas as pd

from erase.app.context import LINE, PRIVATE, Context
from erase.app.figures import note, shares_html
from erase.app.jobs import Tell
from erase.app.shelf import READY, STORED, stored_attacks
from erase.app.visitors import Made
from erase.evaluate.pictures.matrix import canvas_matrix, save_heat_maps, ua_ira_cra
from erase.prompts.catalogue import Catalogue
from erase.prompts.request import find_concept

COLUMNS = ["erasure", "method", "UA", "IRA", "CRA", "n forget", "n retain", "seconds", "MB"]
EMPTY = "Nothing is measured yet; erase something, and its figures will stand here."
STORED_ROWS = f"The rows of {', '.join(READY)} are stored: they were measured before."


def evaluate_tab(context: Context, tab: gr.Tab) -> gr.Dropdown:
    """Build the tab; its choice of erasures is given back. Opening it loads the reports."""
    first = _frame(list(context.visitors.offered.values()))
    gr.Markdown(
        "Accuracies in per cent, as each report's own protocol has them (its card says which). "
        "UA: pictures of the concept that no longer show it; IRA, CRA: what is retained."
    )
    refresh = gr.Button("Load the reports", variant="primary")
    said = gr.HTML(note(EMPTY) if first.empty else note(STORED))
    table = gr.Dataframe(
        first, headers=COLUMNS, interactive=False, label="Measured", show_search="filter",
        elem_id="measured",
    )  # fmt: skip
    csv = gr.DownloadButton("Export as CSV", interactive=False)
    scatter = gr.ScatterPlot(
        first, x="UA", y="IRA", color="method", tooltip=COLUMNS, height=320,
        title="Forgetting against retention, %",
    )  # fmt: skip

    def measured(request: gr.Request) -> tuple:
        """The table of all measured erasures, and its CSV file."""
        visitor = context.visitor(request)
        choices = list(context.visitors.choices(visitor).values())
        frame = _frame(choices)
        if frame.empty:
            return frame, gr.update(interactive=False), frame, note(EMPTY)
        path = visitor.folder / "erasures.csv"
        frame.to_csv(path, index=False)
        stored = any(stored_attacks(made) for made in choices)
        return (
            frame, gr.update(value=str(path), interactive=True), frame,
            note(STORED_ROWS) if stored else "",
        )  # fmt: skip

    shows = [table, csv, scatter, said]
    refresh.click(measured, None, shows, api_name="measured")
    tab.select(measured, None, shows, **PRIVATE)
    chosen = gr.Dropdown(list(context.visitors.offered), value=None, label="Every cell of")
    if known := context.studio.model.catalogue:
        _matrix_part(context, chosen, known)
    return chosen


def _frame(choices: Sequence[Made]) -> pd.DataFrame:
    """A row of every measured erasure."""
    return pd.DataFrame([_row(made) for made in choices if made.report], columns=COLUMNS)


def _row(made: Made) -> list[Any]:
    _, report = made.measured()
    derived = [
        round(100 * report.derived[key], 1) if key in report.derived else None
        for key in ("UA", "IRA", "CRA")
    ]
    accuracies = report.metrics["erased"].accuracies
    counts = [accuracies[key].n for key in ("forget_accuracy", "retain_accuracy")]
    size = round(report.cost.artefact_bytes / 1e6, 3)
    return [made.name, report.method, *derived, *counts, report.cost.seconds, size]


def _matrix_part(context: Context, chosen: gr.Dropdown, known: Catalogue) -> None:
    """The heat-map of every object in every style."""
    studio = context.studio
    count = len(known.objects) * len(known.styles)
    button = gr.Button(f"Draw all {count} cells (takes minutes)")
    status = gr.Markdown("")
    heat = gr.Image(label="Seen by the judge, cell by cell", format="png", interactive=False)

    def matrix(name: str | None, request: gr.Request) -> Iterator[tuple]:
        """UA, IRA and CRA over every object in every style, one picture a cell."""
        visitor = context.visitor(request)
        (made,) = context.visitors.some(visitor, name)
        judge = studio.judge
        if judge is None:
            raise ValueError("There is no judge for this model; start the app with --judge.")

        def work(tell: Tell) -> tuple[str, str]:
            with studio.in_force([(made.erasure, 1.0)]), studio.model.drawing() as pipeline:
                found = canvas_matrix(pipeline, known, judge, studio.model.sampling)
            save_heat_maps({made.name: found}, path := visitor.folder / "matrix.png")
            asked = [find_concept(name, known) for name in made.erasure.facts.concepts]
            protocol = (
                f"one picture a cell, {studio.model.sampling.steps} steps, "
                f"judge {judge.fingerprint}"
            )
            return shares_html(ua_ira_cra(found, asked), protocol), str(path)

        yield from context.carried_out(visitor, work, 1)

    button.click(matrix, chosen, [status, heat], api_name="matrix", show_progress="hidden", **LINE)
    context.cancels(gr.Button("Cancel", variant="stop", size="sm"), status)
