"""Erase: choose what to forget and how, watch it go, and take it home."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from erase.app.context import LINE, PRIVATE, Context
from erase.app.figures import note, report_html
from erase.app.forms import options_form
from erase.app.jobs import Preview, Progress, Tell, followed
from erase.app.options import with_options
from erase.app.settings import require_one_of, require_short, require_within
from erase.app.studio import shown
from erase.app.visitors import Made, Visitor
from erase.erasure.erasure import CARD, Erasure
from erase.erasure.weights import LORA
from erase.evaluate.pictures.generation import EvaluationConfig
from erase.methods import get_method, serving
from erase.models.opening import BUNDLED
from erase.prompts.request import EraseRequest, expand
from erase.runs.erase import RunConfig, run
from erase.tasks.diffusion.task import DiffusionTask

LOOK_EVERY, LOOK_SEED, LEAST_PICTURES = 10, 0, 4
WAITING = "Nothing is being erased. A report will stand here."
LORA_USE = """```python
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("{model}")
pipeline.load_lora_weights("erasure")  # the unpacked folder
```"""
USE = """```python
from erase import Erasure, load_model
pipeline = load_model("{model}").pipeline
Erasure.from_pretrained("erasure").apply(pipeline.components)  # the unpacked folder
```"""
Selectors = Sequence[tuple[gr.components.Component, bool]]


def erase_tab(context: Context) -> Callable[[Selectors], None]:
    """Build the tab; call what it gives back with the choices of erasures in all tabs."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            inputs = _request_form(context)
            with gr.Row():
                button = gr.Button("Erase", variant="primary", elem_id="erase")
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", interactive=False)
        with gr.Column(scale=3, min_width=300):
            shows = _results()
    context.cancels(cancel, shows[0])

    def ask(request: gr.Request) -> dict[str, Any]:
        context.visitor(request).ask()
        return gr.update(interactive=True)

    def connect(selectors: Selectors) -> None:
        parts, many = zip(*selectors, strict=True)

        def after(request: gr.Request) -> list[dict[str, Any]]:
            names = context.names(request)
            return [gr.update(interactive=False), *(gr.update(choices=names) for _ in parts)]

        asked = button.click(ask, None, cancel, queue=False, **PRIVATE)
        done = asked.then(
            _handler(context, many), inputs, [*shows, *parts], api_name="erase",
            show_progress="hidden", **LINE,
        )  # fmt: skip
        done.then(after, None, [cancel, *parts], queue=False, **PRIVATE)

    return connect


def _request_form(context: Context) -> list[gr.components.Component]:
    """What to forget and how, in the order of the handler."""
    known = context.studio.model.catalogue
    names = [str(c) for kind in ("object", "style") for c in known.concepts(kind)] if known else []
    concepts = gr.Dropdown(
        names, value=["ghost"] if "ghost" in names else [], multiselect=True,
        allow_custom_value=True, label="Forget", elem_id="concepts",
    )  # fmt: skip
    anchors = gr.Dropdown(
        names, value=[], multiselect=True, allow_custom_value=True, label="Draw instead",
        info="One for each, or none for what the model suggests.",
    )  # fmt: skip
    retain = gr.Textbox(
        "", label="Keep", info="Concepts, with commas between them.", visible=known is None
    )
    method = gr.Dropdown(
        serving(DiffusionTask), value="projection", label="Method", elem_id="method",
        info="projection takes seconds; salun trains for minutes.",
    )  # fmt: skip
    options = options_form(
        method, lambda name: get_method(name).config, "Options of this method", "method"
    )
    with gr.Row():
        counts = [
            gr.Slider(
                LEAST_PICTURES, context.limits.pictures, 8, step=1,
                label=f"Pictures to judge: {which}",
            )
            for which in ("forgotten", "retained")
        ]  # fmt: skip
    return [concepts, anchors, retain, method, options, *counts]


def _results() -> list[gr.components.Component]:
    """Status, look, report, use, download, grid and card."""
    status = gr.Markdown("", elem_id="status")
    look = gr.Image(
        label="The concept, as it is drawn now", format="png", height=220, interactive=False,
        visible=False,
    )  # fmt: skip
    report = gr.HTML(note(WAITING), elem_id="report")
    use = gr.Markdown("")
    download = gr.DownloadButton("Download", interactive=False, elem_id="download")
    with gr.Accordion("Card and pictures", open=False):
        grid = gr.Image(label="Base above, erased below", format="png", interactive=False)
        card = gr.Markdown("")
    return [status, look, report, use, download, grid, card]


def _handler(context: Context, many: Sequence[bool]) -> Callable[..., Iterator[tuple]]:
    """The handler of Erase; `many` tells which choices of erasures take several."""

    def erase(
        concepts: list[str], anchors: list[str], retain: str, method: str, options: str,
        forget_count: int, retain_count: int, request: gr.Request,
    ) -> Iterator[tuple]:  # fmt: skip
        """Make the model forget, measure it, and keep it under its concepts and method."""
        config = _config(context, concepts, anchors, retain, method, options,
                         forget_count, retain_count)  # fmt: skip
        visitor = context.visitor(request)
        name = _free_name(context, visitor, f"{'+'.join(config.request.concepts)}, {method}")
        rest, started = [gr.skip()] * len(many), time.perf_counter()
        for event in followed(
            _work(context, config, visitor, name),
            visitor.job(),
            context.limits.seconds,
            _look(context, config),
        ):
            if isinstance(event, Progress):
                yield (str(event), *[gr.skip()] * 6, *rest)
            elif isinstance(event, Preview):
                studio = context.studio
                picture = event.picture
                seen = studio.screened(picture)[0] if studio.always_screened else shown(picture)
                look = gr.update(value=visitor.saved("look", seen), visible=True)
                yield (gr.skip(), look, *[gr.skip()] * 5, *rest)
            elif isinstance(event, Erasure):
                seconds = time.perf_counter() - started
                said = f"{name}: erased in {seconds:.1f} s, now under Compare; being measured."
                yield (said, *[gr.skip()] * 6, *_choices(context, request, name, many))
            else:
                yield (*_finished(event, context), *_choices(context, request, name, many))

    return erase


def _free_name(context: Context, visitor: Visitor, name: str) -> str:
    """The name, numbered if it is taken: runs with other options stand beside each other."""
    taken = context.visitors.choices(visitor)
    numbered = (f"{name} {number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def _config(
    context: Context, concepts: Sequence[str], anchors: Sequence[str], retain: str, method: str,
    options: str, forget_count: int, retain_count: int,
) -> RunConfig:  # fmt: skip
    """What was asked for, checked against the limits."""
    limits, studio = context.limits, context.studio
    require_one_of("method", method, serving(DiffusionTask))
    for text in (*concepts, *anchors):
        require_short("concept", text, limits)
    for count in (forget_count, retain_count):
        require_within("The number of pictures", count, LEAST_PICTURES, limits.pictures)
    if studio.judge is None:
        raise ValueError("There is no judge for this model; start the app with --judge.")
    require_within("The number of concepts", len(concepts), 0, limits.concepts)
    if retain:
        require_short("text of what to keep", retain, limits)
    kept = [name.strip() for name in (retain or "").split(",") if name.strip()]
    return RunConfig(
        EraseRequest(concepts=concepts, anchors=anchors, retain=kept),
        model=studio.model.name,
        method=method,
        method_config=with_options(get_method(method).config(), options, limits),
        evaluation=EvaluationConfig(int(forget_count), int(retain_count)),
        judge=studio.config.judge,
        oracle=studio.oracle.name if studio.oracle else "",
        device=studio.config.device,
        offload=studio.config.offload,
        **({} if studio.config.public else studio.config.own_files),
    )


def _work(
    context: Context, config: RunConfig, visitor: Visitor, name: str
) -> Callable[[Tell], Made]:
    """The job: it leaves a measured erasure with the visitor, or nothing."""
    studio = context.studio

    def work(tell: Tell) -> Made:
        workshop = visitor.folder / "work"
        shutil.rmtree(workshop, ignore_errors=True)

        def erased(erasure: Erasure) -> None:
            visitor.made[name] = Made(name, erasure)
            tell(erasure)

        try:
            with studio.lock:
                report = run(
                    config, workshop / "erasure", studio.model, studio.judge, erased, studio.oracle
                )
        except BaseException:
            visitor.forget(name)
            shutil.rmtree(workshop, ignore_errors=True)
            raise
        folder = Path(tempfile.mkdtemp(prefix="erasure-", dir=visitor.folder)) / "erasure"
        (workshop / "erasure").rename(folder)
        made = Made(name, visitor.made[name].erasure, folder, report)
        visitor.keep(made, context.limits)
        return made

    return work


def _look(context: Context, config: RunConfig) -> Callable[[str, int], Any]:
    """Draws the concept every few steps of training, with the weights of that moment."""
    studio = context.studio
    prompt = expand(config.request, studio.model.catalogue).forget[0].text

    def between(what: str, done: int) -> Preview | None:
        if what != "erasing" or done % LOOK_EVERY:
            return None
        steps = studio.model.sampling.steps
        return Preview(studio.drawn_now(prompt, LOOK_SEED, steps))

    return between


def _finished(made: Made, context: Context) -> tuple:
    """What the page shows of a measured erasure."""
    folder, report = made.measured()
    grid = None if context.studio.always_screened else str(folder / "grid.png")
    archive = shutil.make_archive(str(folder), "zip", folder)
    name = context.studio.model.name
    lora = (folder / LORA).exists()
    use = LORA_USE.format(model=_stock_name(context)) if lora else USE.format(model=name)
    card = (folder / CARD).read_text(encoding="utf-8").split("---\n", 2)[-1]
    size = report.cost.artefact_bytes / 1e6
    said = f"{made.name}: done, {report.cost.seconds:.0f} s, {size:.2f} MB."
    return (
        said, gr.update(visible=False), report_html(report), use,
        gr.update(value=archive, interactive=True), grid, card,
    )  # fmt: skip


def _stock_name(context: Context) -> str:
    """What plain diffusers opens the base by: the bundled model by its folder."""
    studio = context.studio
    bundled = studio.config.model in BUNDLED
    return f"erase/bundled/{studio.config.model}" if bundled else studio.model.name


def _choices(
    context: Context, request: gr.Request, name: str, many: Sequence[bool]
) -> list[dict[str, Any]]:
    names = context.names(request)
    return [gr.update(choices=names, value=[name] if several else name) for several in many]
