"""Where it lives: which blocks an erasure changes, and how two of them meet."""

from html import escape

import gradio as gr

from erase.app.context import LINE, Context
from erase.app.figures import markdown_table, note
from erase.app.visitors import Made, Visitor
from erase.core.names import find_weight
from erase.erasure.algebra import interference
from erase.evaluate import tables
from erase.evaluate.layers import blocks_of, changes_of, save_change_chart, save_chart

CLOSEST = 12
EMPTY = "Choose an erasure, and another to see how they meet."


def where_tab(context: Context) -> list[gr.Dropdown]:
    """Build the tab; both its choices of erasures are given back."""
    offered = list(context.visitors.offered)
    first = context.visitors.offered[offered[0]] if offered else None
    with gr.Row():
        one = gr.Dropdown(offered, value=offered[0] if offered else None, label="Erasure")
        other = gr.Dropdown(offered, value=None, label="Beside")
        button = gr.Button("Show", variant="primary")
    gr.Markdown(
        "What a mask is worth shows beside its controls: under Erase, set `mask` of salun to "
        "`random`, `random_per_layer`, `bottom` or `none`, and compare the reports."
    )
    shown = _charts(context, first, context.visitors.host()) if first else (None, None, note(EMPTY))
    change = gr.Image(shown[0], label="Change by block", format="png", interactive=False)
    mask = gr.Image(
        shown[1], label="Saliency and mask by block", format="png", interactive=False,
        visible=shown[1] is not None,
    )  # fmt: skip
    table = gr.HTML(shown[2])
    meeting = gr.HTML("")

    def where(one: str | None, other: str | None, request: gr.Request) -> tuple:
        """Charts of an erasure's blocks, and the tensors it shares with another."""
        visitor = context.visitor(request)
        chosen = context.visitors.some(visitor, one, other)
        changed, masked, blocks = _charts(context, chosen[0], visitor)
        said = _meeting(*chosen) if len(chosen) > 1 else ""
        return changed, gr.update(value=masked, visible=masked is not None), blocks, said

    shows = [change, mask, table, meeting]
    button.click(where, [one, other], shows, api_name="where", **LINE)
    one.input(where, [one, other], shows, api_visibility="private", **LINE)
    return [one, other]


def _charts(context: Context, made: Made, visitor: Visitor) -> tuple[str, str | None, str]:
    """Paths of the two charts, and the table of blocks where there is a mask."""
    components = context.studio.model.pipeline.components
    with context.studio.lock:
        changes = changes_of(made.erasure.deltas, lambda name: find_weight(components, name))
    path, masked = visitor.folder / "change.png", visitor.folder / "mask.png"
    save_change_chart(changes, path)
    layers = made.erasure.facts.layers
    if not layers:
        return str(path), None, note("This method chose its tensors without a mask.")
    save_chart(blocks := blocks_of(layers), masked)
    return str(path), str(masked), markdown_table(tables.block_table(blocks))


def _meeting(one: Made, other: Made) -> str:
    """The tensors both change, the closest first."""
    rows = sorted(
        interference(one.erasure, other.erasure), key=lambda row: -abs(row["cosine"])
    )[:CLOSEST]  # fmt: skip
    if not rows:
        return note(f"{one.name} and {other.name} change no tensor in common.")
    head = list(rows[0])
    cells = [[str(row[key]) for key in head] for row in rows]
    title = f"<h3>{escape(one.name)} beside {escape(other.name)}</h3>"
    return title + markdown_table(tables.markdown_table([head, *cells]))
