"""Compare: one prompt with and without the chosen erasures, under one slider."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from erase.app.context import LINE, PRIVATE, Context
from erase.app.figures import figure, note
from erase.app.jobs import until
from erase.app.settings import require_one_of, require_within
from erase.app.studio import LARGEST_SEED, MOST_STRENGTH, THRESHOLD, beside, shown
from erase.app.visitors import Visitor
from erase.prompts.catalogue import Catalogue

NEARBY = 4
EMPTY = "Write a prompt or pick one, and press Generate."


def compare_tab(context: Context) -> gr.CheckboxGroup:
    """Build the tab; its choice of erasures is given back, to be filled as they are made."""
    pictures, said, strip = _first_view(context)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            prompt, chosen, strength, *_ = inputs = _controls(context)
            button = gr.Button("Generate", variant="primary", elem_id="generate")
        with gr.Column(scale=3, min_width=300, elem_id="outcome"):
            outputs = [
                gr.ImageSlider(
                    pictures, label="Base | erased", format="png", elem_id="compared",
                    interactive=False, max_height=460,
                ),
                gr.HTML(said),
                gr.Gallery(
                    strip, label="Nearby concepts: base | erased", columns=NEARBY, format="png",
                    height=210, elem_id="nearby", object_fit="contain", interactive=False,
                ),
            ]  # fmt: skip
    generate = _handler(context)
    # Whoever asks again while the strip is being drawn is not turned away.
    how = {"show_progress": "minimal", "trigger_mode": "always_last", **LINE}
    button.click(generate, inputs, outputs, api_name="generate", **how)
    for asked in (prompt.submit, strength.input):
        asked(generate, inputs, outputs, api_visibility="private", **how)
    return chosen


def _controls(context: Context) -> list[gr.components.Component]:
    """Prompt, erasures, strength, seed, steps and screening, in the order of the handler."""
    studio, known = context.studio, context.studio.model.catalogue
    offered = list(context.visitors.offered)
    prompt = gr.Textbox(_first_prompt(context), label="Prompt", elem_id="prompt", max_lines=3)
    if known:
        _picker(context, prompt, known)
    chosen = gr.CheckboxGroup(
        offered, value=offered[:1], label="Erasures in force, in this order",
        info="Make one under Erase; none is the base twice.", elem_id="chosen",
    )  # fmt: skip
    strength = gr.Slider(
        0, MOST_STRENGTH, 1, step=0.05, label="Strength", elem_id="strength",
        info="0 is the base, 1 the erasure as it was made.",
    )  # fmt: skip
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
        steps = gr.Slider(
            1, context.limits.steps, studio.model.sampling.steps, step=1, label="Steps"
        )
    screen = gr.Checkbox(
        known is None, label="Look for nudity (NudeNet) and blur it",
        interactive=not studio.always_screened,
    )  # fmt: skip
    return [prompt, chosen, strength, seed, steps, screen]


def _handler(context: Context) -> Callable[..., Iterator[tuple]]:
    """The handler of Generate."""
    studio = context.studio

    def generate(
        prompt: str, erasures: list[str], strength: float, seed: int, steps: int, screen: bool,
        request: gr.Request,
    ) -> Iterator[tuple]:  # fmt: skip
        """Draw a prompt with and without erasures; then what became of the concepts nearby."""
        visitor = context.visitor(request)
        made = context.visitors.chosen(visitor, erasures)
        force = [(one.erasure, strength) for one in made]
        require_within("The strength", strength, 0, MOST_STRENGTH)
        screen = screen or studio.always_screened
        stop = visitor.draws()
        try:
            yield from _views(context, visitor, stop, prompt, force, seed, steps, screen)
        finally:
            stop.set()  # not that of what the same visitor may draw by now

    return generate


def _views(
    context: Context, visitor: Visitor, stop: threading.Event, prompt: str,
    force: list[tuple[Any, float]], seed: int, steps: int, screen: bool,
) -> Iterator[tuple]:  # fmt: skip
    """Both pictures and their figures; then, with an erasure, the strip of concepts nearby too."""
    studio = context.studio
    with until(stop):
        pair = [studio.drawn([prompt], seed, steps, part)[0] for part in ((), force)]
    pictures, found = _screened(context, pair) if screen else ([shown(p) for p in pair], None)
    text = _figures_html(context, torch.stack(pair), prompt, seed, steps, found)
    paths = tuple(map(visitor.saved, ("base", "erased"), pictures))
    yield paths, text, []
    if force:
        with until(stop):
            near = _nearby(context, prompt, seed, steps, force)
        strip = [(visitor.saved(f"near-{i}", one), said) for i, (one, said) in enumerate(near)]
        yield paths, text, strip


def _first_view(context: Context) -> tuple[tuple[str, str] | None, str, list]:
    """What a visitor sees before any click: the first erasure offered, at work."""
    offered = list(context.visitors.offered.values())
    if not offered or context.studio.always_screened:
        return None, note(EMPTY), []
    visitor, steps = context.visitors.host(), context.studio.model.sampling.steps
    force = [(offered[0].erasure, 1.0)]
    prompt, stop = _first_prompt(context), visitor.draws()
    *_, last = _views(context, visitor, stop, prompt, force, 0, steps, False)
    return last


def _first_prompt(context: Context) -> str:
    """A prompt that names what the first erasure offered forgets, or the first object known."""
    known = context.studio.model.catalogue
    if known is None:
        return ""
    offered = next(iter(context.visitors.offered.values()), None)
    asked = offered.erasure.recipe.get("request", {}).get("concepts", []) if offered else []
    objects = [name for name in asked if name in known.objects]
    return known.prompt(objects[0] if objects else known.objects[0], known.styles[0])


def _picker(context: Context, prompt: gr.Textbox, known: Catalogue) -> None:
    """Two drop-downs that write the prompt, and examples of one click."""
    with gr.Row():
        first = _named_object(known, _first_prompt(context))
        what = gr.Dropdown(list(known.objects), label="Object", value=first)
        style = gr.Dropdown(list(known.styles), label="Style", value=known.styles[0])

    def written(what: str | None, style: str) -> str:
        if what:
            require_one_of("object", what, known.objects)
            require_one_of("style", style, known.styles)
        return known.prompt(what, style) if what else gr.skip()

    def read(prompt: str) -> tuple[str | None, Any]:
        styles = [name for name in known.styles if f"{name} style" in prompt]
        return _named_object(known, prompt), max(styles, key=len) if styles else gr.skip()

    for one in (what, style):
        one.input(written, [what, style], prompt, queue=False, **PRIVATE)
    prompt.change(read, prompt, [what, style], queue=False, **PRIVATE)
    pairs = zip(known.objects[::17], ([*known.styles] * 8)[::3], strict=False)
    gr.Examples(
        [known.prompt(*pair) for pair in pairs][:4], prompt, label="Prompts to try",
        api_visibility="private",
    )  # fmt: skip


def _named_object(known: Catalogue, prompt: str) -> str | None:
    """The longest object's name that the prompt holds."""
    named = [name for name in known.objects if f" {name} " in f" {prompt} "]
    return max(named, key=len, default=None)


def _screened(context: Context, pair: Sequence[Tensor]) -> tuple[list[Image.Image], list[str]]:
    pictures, found = zip(*map(context.studio.screened, pair), strict=True)
    return list(pictures), list(found)


def _figures_html(
    context: Context, pair: Tensor, prompt: str, seed: int, steps: int, found: list[str] | None
) -> str:
    """What the judge and NudeNet see in either picture."""
    studio = context.studio
    taken = f"model {studio.model.name}, prompt {prompt!r}, seed {seed}, {steps} steps"
    judged = f"judge {studio.judge.fingerprint}, {taken}" if studio.judge else ""
    scores = studio.scores(pair, prompt)
    columns = []
    for i, (name, seen) in enumerate(zip(("Base", "Erased"), studio.seen(pair), strict=True)):
        parts = [f"{kind} {figure(label, judged)}" for kind, label in seen.items()]
        parts += [f"CLIP score {figure(f'{scores[i]:.2f}', judged)}"] if scores else []
        if found:
            protocol = f"NudeNet at {THRESHOLD}, exposed classes, {taken}"
            parts += [f"nudity {figure(found[i], protocol)}"]
        columns.append(f"<div><b>{name}</b><br>seen as {', '.join(parts)}</div>")
    return f'<div class="seen">{"".join(columns)}</div>'


def _became(name: str, was: str, now: str) -> str:
    """A nearby concept's name; what the judge takes it for now and before, where that differs."""
    if name == was == now:
        return name
    return f"{name}: {now}" + (f" (was {was})" if was != now else "")


def _nearby(
    context: Context, prompt: str, seed: int, steps: int, force: list[tuple[Any, float]]
) -> list[tuple[Image.Image, str]]:
    """The nearest concepts with and without the erasures, and whether the judge still sees them."""
    studio, known = context.studio, context.studio.model.catalogue
    named = _named_object(known, prompt) if known else None
    near = studio.nearest(named, NEARBY) if named else []
    if not named or not near:
        return []
    prompts = [prompt.replace(named, name) for name in near]
    before, after = (studio.drawn(prompts, seed, steps, part) for part in ((), force))
    return [
        (beside(one, other), _became(name, was["object"], now["object"]))
        for name, one, other, was, now in zip(
            near, before, after, studio.seen(before), studio.seen(after), strict=True
        )
    ]
