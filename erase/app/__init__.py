"""The app: erasure made visible, on the bundled model or any other pipeline."""

import os

from erase.app.settings import AppConfig, limits_of

__all__ = ["AppConfig", "limits_of", "main"]


def main(config: AppConfig | None = None) -> None:
    """Serve the app until it is stopped; ValueError for what it cannot be started with."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from erase.app.build import serve
    except ModuleNotFoundError as error:
        raise ValueError(
            f"The app needs {error.name}, which is not installed; install diffusers-erase[app]."
        ) from error
    serve(config or AppConfig())
