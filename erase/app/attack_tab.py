"""Break it: attack an erasure with a budget, and see what comes back."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from erase.app.context import LINE, Context, plainly
from erase.app.figures import markdown_table, note, protocol_of
from erase.app.forms import options_form
from erase.app.jobs import Progress, Tell, followed
from erase.app.options import with_options
from erase.app.settings import require_within
from erase.attacks import attacks
from erase.evaluate.reports import AttackReport
from erase.evaluate.tables import attack_table
from erase.runs.attack import AttackRun, run_attacks

EMPTY = "Choose an erasure and an attack. What comes back will stand here."
LEAST, FIRST = 4, 8
CURVE = ["steps", "share that shows the concept", "model"]


def attack_tab(context: Context) -> gr.Dropdown:
    """Build the tab; its choice of erasures is given back."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            chosen = gr.Dropdown(list(context.visitors.offered), value=None, label="Erasure")
            attack = gr.Dropdown(
                list(attacks()), value="recall", label="Attack",
                info="recall is the quickest; searches and relearning take minutes.",
            )  # fmt: skip
            options = options_form(attack, lambda name: attacks()[name].config, "attack")
            prompts = gr.Slider(LEAST, context.limits.pictures, FIRST, step=1, label="Prompts")
            with gr.Row():
                button = gr.Button("Attack", variant="primary")
                cancel = gr.Button("Cancel", variant="stop")
        with gr.Column(scale=3, min_width=300):
            status = gr.Markdown("")
            table = gr.HTML(note(EMPTY))
            gallery = gr.Image(label="What the attack drew", format="png", interactive=False)
            curve = gr.LinePlot(
                x=CURVE[0], y=CURVE[1], color=CURVE[2], title="Relearning", visible=False
            )

    @plainly
    def attacked(
        name: str | None, attack: str, options: str, prompts: int, request: gr.Request
    ) -> Iterator[tuple]:
        """Attack an erasure: Pre-ASR, ASR and budget, the oracle beside it where there is one."""
        run_, output = _prepared(context, name, attack, options, prompts, request)
        studio = context.studio

        def work(tell: Tell) -> AttackReport:
            with studio.lock:
                return run_attacks(run_, output, studio.model, studio.judge, studio.oracle)

        limit = context.limits.seconds
        for event in followed(work, context.visitor(request).job(), limit):
            if isinstance(event, Progress):
                yield str(event), gr.skip(), gr.skip(), gr.skip()
            else:
                yield ("Done.", *_shown(event, output, attack, studio.always_screened))

    button.click(
        attacked, [chosen, attack, options, prompts], [status, table, gallery, curve],
        api_name="attack", show_progress="hidden", **LINE,
    )  # fmt: skip
    context.cancels(cancel, status)
    return chosen


def _prepared(
    context: Context, name: str | None, attack: str, options: str, prompts: int,
    request: gr.Request,
) -> tuple[AttackRun, Path]:  # fmt: skip
    """The run that was asked for, within the limits, and its folder."""
    if not name:
        raise ValueError("No erasure is chosen; choose one, or make one under Erase.")
    visitor = context.visitor(request)
    (made,) = context.visitors.chosen(visitor, [name])
    if made.folder is None:
        raise ValueError(f"{name} is being measured; wait until it is.")
    require_within("The number of prompts", prompts, LEAST, context.limits.pictures)
    config = with_options(attacks()[attack].config(), options, context.limits)
    output = visitor.folder / "attack"
    shutil.rmtree(output, ignore_errors=True)
    return AttackRun(str(made.folder), [attack], {attack: config}, int(prompts)), output


def _shown(
    report: AttackReport, output: Path, attack: str, hidden: bool
) -> tuple[str, str | None, Any]:
    """The table, the pictures unless hidden, and the curve where the attack has one."""
    protocol = protocol_of(report)
    table = markdown_table(attack_table(report), protocol)
    rows = [
        (int(step), share, name)
        for found, name in ((report.attacks, "erased"), (report.oracle, "oracle"))
        if attack in found
        for step, share in found[attack].details.get("curve", {}).items()
    ]
    plot = gr.update(value=pd.DataFrame(rows, columns=CURVE), visible=bool(rows))
    return table, None if hidden else str(output / f"{attack}.png"), plot
