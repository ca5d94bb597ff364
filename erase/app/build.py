"""The tabs put together, and the server."""

import atexit
import os
from typing import Any

import gradio as gr

from erase.app.attack_tab import attack_tab
from erase.app.classifier_tab import classifier_tab
from erase.app.compare_tab import compare_tab
from erase.app.context import Context
from erase.app.erase_tab import erase_tab
from erase.app.evaluate_tab import evaluate_tab
from erase.app.settings import AppConfig, limits_of
from erase.app.studio import Studio
from erase.app.theme import CSS, build_theme
from erase.app.visitors import Visitors
from erase.app.where_tab import where_tab
from erase.bundled import ATTACKS, DIGITS

TITLE = "erase"
HEAD = """<div class="masthead"><h1>erase</h1>
<p>Make a text-to-image model forget, and see what it still knows. Model: {model}.</p></div>"""
KEPT_SECONDS = 3600


def build_app(config: AppConfig) -> gr.Blocks:
    """The page around an open model; ValueError for what cannot be opened."""
    limits = limits_of(config)
    studio = Studio(config, limits)
    visitors = Visitors(studio.offered(), limits)
    atexit.register(visitors.close)
    # Gradio serves what handlers return from here, and from nowhere else.
    os.environ["GRADIO_TEMP_DIR"] = str(visitors.root / "served")
    context = Context(studio, visitors, limits)
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.HTML(HEAD.format(model=studio.model.name))
        with gr.Tabs():
            with gr.Tab("Compare"):
                compared = compare_tab(context)
            with gr.Tab("Erase"):
                connect = erase_tab(context)
            with gr.Tab("Where it lives"):
                shown = where_tab(context)
            with gr.Tab("Break it"):
                attacked = attack_tab(context)
            with gr.Tab("Evaluate") as tab:
                measured = evaluate_tab(context, tab)
            with gr.Tab("Classifier"):
                classifier_tab(context)
            connect([(compared, True), *((part, False) for part in (*shown, attacked, measured))])

        def leave(request: gr.Request) -> None:
            visitors.leave(request.session_hash)

        page.unload(leave)
    page.queue(max_size=limits.queue, default_concurrency_limit=4)
    return page


def launch(page: gr.Blocks, config: AppConfig, **options: Any) -> tuple[Any, str, str]:
    """Serve the page; what its handlers return and pictures of the package can be fetched alone."""
    return page.launch(
        server_name=config.host,
        server_port=config.port or None,
        theme=build_theme(),
        css=CSS,
        share=False,
        ssr_mode=False,
        show_error=True,
        max_file_size="1mb",
        allowed_paths=[str(ATTACKS), str(DIGITS)],
        footer_links=["api"],
        **options,
    )


def serve(config: AppConfig) -> None:
    """Build and serve until stopped."""
    launch(build_app(config), config)
