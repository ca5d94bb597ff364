"""Classifier: a class of handwritten digits forgotten by any method, beside a retrained model."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from erase.app.context import LINE, Context
from erase.app.figures import markdown_table
from erase.app.forms import options_form
from erase.app.jobs import Tell
from erase.app.options import with_options
from erase.app.settings import require_one_of
from erase.app.shelf import STORED, stored_digits
from erase.evaluate.reports import GapReport
from erase.evaluate.tables import gap_table, protocol_of
from erase.methods import get_method, serving
from erase.runs.classify import ClassificationRun, ClassifierConfig, classify
from erase.tasks.classification.fit import FitConfig
from erase.tasks.classification.task import ClassificationTask

PICTURES = {
    "gaps.png": "Points from a model retrained without the class",
    "boundary.png": "Answers on the plane through a forgotten and two other samples",
    "attribution.png": "What the true class' logit rests on (integrated gradients)",
}
DIGITS = tuple("0123456789")
# Small enough that two trainings are worth waiting for.
MODEL, EPOCHS, WEIGHTS = "shufflenet_v2_x0_5", 20, "digits.safetensors"


def classifier_methods() -> list[str]:
    """The methods that serve classifiers, but for Retrain, which each is set beside."""
    return [name for name in serving(ClassificationTask) if name != "retrain"]


def classifier_tab(context: Context) -> None:
    """Build the tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            gone = gr.Dropdown(list(DIGITS), value="3", label="Forget the digit")
            method = gr.Dropdown(classifier_methods(), value="projection", label="Method")
            options = options_form(
                method, lambda name: get_method(name).config, "Options of this method",
                "classifier-method",
            )  # fmt: skip
            button = gr.Button("Forget and retrain (about a minute)", variant="primary")
        with gr.Column(scale=3, min_width=300):
            said, rows, first = _stored()
            status, table = gr.Markdown(said), gr.HTML(rows)
            pictures = gr.Gallery(
                first, label="Original, retrained, unlearned", columns=1, format="png",
                height="auto", object_fit="contain", interactive=False,
            )  # fmt: skip

    def classified(gone: str, method: str, options: str, request: gr.Request) -> Iterator[tuple]:
        """Forget a digit's class, and the gaps to a model retrained without it."""
        require_one_of("digit", gone, DIGITS)
        require_one_of("method", method, classifier_methods())
        config = with_options(get_method(method).config(), options, context.limits)
        original = ClassifierConfig(
            model=MODEL, weights=str(context.visitors.root / WEIGHTS), fit=FitConfig(EPOCHS)
        )
        run_ = ClassificationRun(
            original, f"class:{gone}", method=method, method_config=config,
            device=context.studio.config.device,
        )  # fmt: skip
        visitor = context.visitor(request)
        output = visitor.folder / "classifier"
        shutil.rmtree(output, ignore_errors=True)

        def work(tell: Tell) -> tuple:
            report = classify(run_, output)
            assert report  # the app is one process
            return _shown(report, output)

        yield from context.carried_out(visitor, work, 2)

    button.click(
        classified, [gone, method, options], [status, table, pictures], api_name="classify",
        show_progress="hidden", **LINE,
    )  # fmt: skip


def _stored() -> tuple[str, str, list[tuple[str, str]]]:
    """A digit that was forgotten before the package was published."""
    report, folder = stored_digits()
    said, rows, pictures = _shown(report, folder)
    return f"{STORED} {report.request}, by {report.method}. {said}", rows, pictures


def _shown(report: GapReport, folder: Path) -> tuple[str, str, list[tuple[str, str]]]:
    table = markdown_table(gap_table(report), protocol_of(report))
    pictures = [(folder / name, title) for name, title in PICTURES.items()]
    there = [(str(path), title) for path, title in pictures if path.exists()]
    return f"Verdict: {report.verdict}.", table, there
