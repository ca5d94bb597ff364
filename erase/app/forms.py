"""A method's or attack's own options as a form that writes them as JSON."""

import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from erase.app.context import PRIVATE, plainly
from erase.app.options import Option, options_of


def options_form(
    choice: gr.Dropdown, config_of: Callable[[str], type], title: str, name: str
) -> gr.Textbox:
    """A folded form of the chosen method's options; the box with what was set, as JSON.

    name: what the page's elements are called by.
    """
    with gr.Accordion(title, open=False):
        written = gr.Textbox(
            "{}", label="Options, as JSON", elem_id=f"{name}-options",
            info="What is not named keeps its default; the form below writes here.",
        )  # fmt: skip

        # One form at a time: gradio adds all of a page's fields to one dictionary.
        @gr.render(inputs=choice, concurrency_limit=1, concurrency_id="forms")
        def form(chosen: str) -> None:
            for option in options_of(config_of(chosen)):
                _field(option, written)

    choice.change(lambda: "{}", None, written, queue=False, **PRIVATE)
    return written


def _field(option: Option, written: gr.Textbox) -> None:
    about = {"label": option.key, "info": option.about, "value": option.default}
    if isinstance(option.kind, tuple):
        field: gr.components.Component = gr.Dropdown(list(option.kind), **about)
    elif option.kind is bool:
        field = gr.Checkbox(**about)
    else:
        field = gr.Number(precision=0 if option.kind is int else None, **about)

    @plainly
    def write(value: Any, text: str) -> str:
        try:
            others = {k: v for k, v in json.loads(text or "{}").items() if k != option.key}
        except (ValueError, RecursionError, AttributeError):
            others = {}
        unset = value is None or value == option.default
        return json.dumps(others if unset else others | {option.key: value})

    field.input(write, [field, written], written, queue=False, preprocess=False, **PRIVATE)
