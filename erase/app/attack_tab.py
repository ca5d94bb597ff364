"""Break it: attack an erasure with a budget, and see what comes back."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from erase.app.context import LINE, PRIVATE, Context
from erase.app.figures import markdown_table, note
from erase.app.forms import options_form
from erase.app.jobs import Tell
from erase.app.options import with_options
from erase.app.settings import require_within
from erase.app.shelf import STORED, stored_attacks
from erase.attacks import attacks, get_attack
from erase.evaluate.reports import AttackReport
from erase.evaluate.tables import attack_table, protocol_of
from erase.runs.attack import AttackRun, run_attacks

EMPTY = "Choose an erasure and an attack. What comes back will stand here."
LEAST, FIRST, FIRST_ATTACK = 4, 8, "recall"
CURVE = ["steps", "share that shows the concept", "model"]


def attack_tab(context: Context) -> gr.Dropdown:
    """Build the tab; its choice of erasures is given back."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            offered = list(context.visitors.offered)
            first = offered[0] if offered else None
            chosen = gr.Dropdown(offered, value=first, label="Erasure")
            attack = gr.Dropdown(
                list(attacks()), value=FIRST_ATTACK, label="Attack",
                info="recall is the quickest; searches and relearning take minutes.",
            )  # fmt: skip
            options = options_form(
                attack, lambda name: get_attack(name).config, "Options of this attack", "attack"
            )
            prompts = gr.Slider(LEAST, context.limits.pictures, FIRST, step=1, label="Prompts")
            with gr.Row():
                button = gr.Button("Attack", variant="primary")
                cancel = gr.Button("Cancel", variant="stop")
        with gr.Column(scale=3, min_width=300):
            status, *_ = shows = _results(context, first)

    def attacked(
        name: str | None, attack: str, options: str, prompts: int, request: gr.Request
    ) -> Iterator[tuple]:
        """Attack an erasure: Pre-ASR, ASR and budget, the oracle beside it where there is one."""
        run_, output = _prepared(context, name, attack, options, prompts, request)
        studio = context.studio

        def work(tell: Tell) -> tuple:
            with studio.lock:
                report = run_attacks(run_, output, studio.model, studio.judge, studio.oracle)
            assert report  # the app is one process
            rows, picture, frame = _shown(report, output, attack, studio.always_screened)
            return "Done.", rows, picture, _plot(frame)

        yield from context.carried_out(context.visitor(request), work, 3)

    button.click(
        attacked, [chosen, attack, options, prompts], shows, api_name="attack",
        show_progress="hidden", **LINE,
    )  # fmt: skip

    def stored(name: str | None, attack: str) -> tuple:
        get_attack(attack)
        said, rows, picture, frame = _stored(context, name, attack)
        return said, rows, picture, _plot(frame)

    for one in (chosen, attack):
        one.input(stored, [chosen, attack], shows, queue=False, **PRIVATE)
    context.cancels(cancel, status)
    return chosen


def _results(context: Context, name: str | None) -> list[gr.components.Component]:
    """Status, table, pictures and curve, of what is stored of the erasure at first."""
    said, rows, picture, frame = _stored(context, name, FIRST_ATTACK)
    return [
        gr.Markdown(said),
        gr.HTML(rows),
        gr.Image(picture, label="What the attack drew", format="png", interactive=False),
        gr.LinePlot(
            frame, x=CURVE[0], y=CURVE[1], color=CURVE[2], title="Relearning",
            visible=not frame.empty,
        ),
    ]  # fmt: skip


def _stored(
    context: Context, name: str | None, attack: str
) -> tuple[str, str, str | None, pd.DataFrame]:
    """What was measured before of a ready erasure: status, table, picture and curve."""
    made = context.visitors.offered.get(name or "")
    kept = stored_attacks(made) if made else None
    if kept is None:
        return "", note(EMPTY), None, pd.DataFrame(columns=CURVE)
    return STORED, *_shown(*kept, attack, context.studio.always_screened)


def _plot(frame: pd.DataFrame) -> dict[str, Any]:
    return gr.update(value=frame, visible=not frame.empty)


def _prepared(
    context: Context, name: str | None, attack: str, options: str, prompts: int,
    request: gr.Request,
) -> tuple[AttackRun, Path]:  # fmt: skip
    """The run that was asked for, within the limits, and its folder."""
    visitor = context.visitor(request)
    (made,) = context.visitors.some(visitor, name)
    if made.folder is None:
        raise ValueError(f"{name} is being measured; wait until it is.")
    require_within("The number of prompts", prompts, LEAST, context.limits.pictures)
    config = with_options(get_attack(attack).config(), options, context.limits)
    output = visitor.folder / "attack"
    shutil.rmtree(output, ignore_errors=True)
    run_ = AttackRun(
        str(made.folder), [attack], {attack: config}, int(prompts),
        offload=context.studio.config.offload,
    )  # fmt: skip
    return run_, output


def _shown(
    report: AttackReport, output: Path, attack: str, hidden: bool
) -> tuple[str, str | None, pd.DataFrame]:
    """The table, the pictures unless hidden or not there, and the curve of a relearning attack."""
    protocol = protocol_of(report)
    table = markdown_table(attack_table(report), protocol)
    rows = [
        (int(step), share, name)
        for found, name in ((report.attacks, "erased"), (report.oracle, "oracle"))
        if attack in found
        for step, share in found[attack].details.get("curve", {}).items()
    ]
    picture = output / f"{attack}.png"
    seen = None if hidden or not picture.is_file() else str(picture)
    return table, seen, pd.DataFrame(rows, columns=CURVE)
