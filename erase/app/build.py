"""The tabs put together, and the server."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
from starlette.middleware import Middleware

from erase.app.attack_tab import attack_tab
from erase.app.classifier_tab import classifier_tab
from erase.app.compare_tab import compare_tab
from erase.app.context import Context, plainly
from erase.app.door import UNFIT, Door
from erase.app.erase_tab import erase_tab
from erase.app.evaluate_tab import evaluate_tab
from erase.app.settings import AppConfig, limits_of
from erase.app.studio import Studio
from erase.app.theme import CSS, build_theme
from erase.app.visitors import Visitors
from erase.app.where_tab import where_tab
from erase.bundled import ATTACKS, DIGITS
from erase.support.errors import refused

TITLE = "erase"
HEAD = """<div class="masthead"><h1>erase</h1>
<p>Make a text-to-image model forget, and see what it still knows. Model: {model}.</p></div>"""
KEPT_SECONDS = 3600
SESSIONS_A_VISITOR = 4  # kept of gradio's own state; a page that is opened again is another


def build_page(context: Context) -> gr.Blocks:
    """The page around an open model."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.HTML(HEAD.format(model=context.studio.model.name))
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
            context.visitors.leave(request.session_hash)

        page.unload(leave)
    for endpoint in page.fns.values():
        # Gradio's own checks say more than a sentence, and let some types pass.
        endpoint.fn, endpoint.preprocess = plainly(endpoint.fn), False
    page.queue(max_size=context.limits.queue, default_concurrency_limit=4, api_open=False)
    return page


@contextmanager
def served(config: AppConfig, quiet: bool = False) -> Iterator[tuple[str, Studio]]:
    """While in force, the app is served: its address and model; afterwards nothing of it is left.

    What its handlers return and pictures of the package can be fetched alone. ValueError for what
    cannot be opened.
    """
    _require_free(config.host, config.port)
    limits = limits_of(config)
    studio = Studio(config, limits)
    visitors = Visitors(studio.offered(), limits)
    page = None
    try:
        # Gradio serves what handlers return from here, and from nowhere else.
        os.environ["GRADIO_TEMP_DIR"] = str(visitors.root / "served")
        page = build_page(Context(studio, visitors, limits))
        door = Middleware(Door, page=page, visitors=visitors, limits=limits)
        _, address, _ = page.launch(
            server_name=config.host,
            server_port=config.port or None,
            theme=build_theme(),
            css=CSS,
            share=False,
            ssr_mode=False,
            show_error=True,
            run_history=False,
            enable_monitoring=False,
            state_session_capacity=SESSIONS_A_VISITOR * limits.visitors,
            app_kwargs={"middleware": [door], "exception_handlers": UNFIT},
            allowed_paths=[str(ATTACKS), str(DIGITS)],
            footer_links=["api"],
            prevent_thread_lock=True,
            quiet=quiet,
        )
        yield address, studio
    finally:
        visitors.close()
        if page:
            page.close(verbose=False)
        visitors.close()  # what was written meanwhile


def _require_free(host: str, port: int) -> None:
    """ValueError for an address at which nothing can be served."""
    what, mend = f"Nothing can be served at {host}:{port}", "name another --host or --port"
    place, family = host.strip("[]"), socket.AF_INET6 if ":" in host else socket.AF_INET
    with refused(what, mend, OSError), socket.create_server((place, port), family=family):
        pass


def serve(config: AppConfig) -> None:
    """Serve until SIGTERM or SIGINT, which raise KeyboardInterrupt here."""
    told = threading.Event()

    def end(*_: object) -> None:
        told.set()  # where the exception is lost on its way, as in a destructor, this is not
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with served(config):
        told.wait()
    raise KeyboardInterrupt
