"""The command line, whose flags and YAML keys come from typed configs, and how it ends."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from erase.cli.commands import COMMANDS
from erase.support.errors import OF_FILES, sentence
from erase.support.memory import keep_freed_memory

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Preset = Literal["ours", "published"]
STOPPED = "Stopped; the same command goes on from what was kept, if anything was."
STOPS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand: 0 on success, 2 after one sentence on bad input, 130 when stopped.

    What a subcommand needs is imported when it is asked for, so that the list of them is quick.
    SIGTERM stops it as SIGINT does where the process is ours, which it is without `arguments`.
    """
    ours = arguments is None
    if ours:
        on_stop(leave)
    if ours and sys.getfilesystemencoding() != "utf-8":  # a locale of few letters
        again = [sys.executable, "-X", "utf8", "-m", "erase", *sys.argv[1:]]
        os.execv(sys.executable, again)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know few letters
            stream.reconfigure(errors="backslashreplace")
    try:
        return _carried_out(sys.argv[1:] if arguments is None else list(arguments), ours)
    except (ValueError, *OF_FILES) as error:
        complain(sentence(error))
        return 2
    except KeyboardInterrupt as stop:
        complain(str(stop) or STOPPED)
        return 130
    finally:
        if ours:
            on_stop(signal.SIG_DFL)
        drop_unread()


def _carried_out(words: Sequence[str], ours: bool) -> int:
    parser = argparse.ArgumentParser("erase", description="Make a text-to-image model forget.")
    known = parser.add_subparsers(dest="name", required=True, metavar="command")
    for name, command in COMMANDS.items():
        known.add_parser(name, help=command.text, add_help=False)
    name = parser.parse_args(words[:1]).name
    keep_freed_memory()
    parser = build_parser(name, words[1:])
    options = parser.instantiate(parsed(parser, words[1:]))
    if ours:
        on_stop(signal.default_int_handler)
    said = COMMANDS[name].work(options)
    if ours:
        on_stop(signal.SIG_DFL)  # all is done
    return tell(said)


def build_parser(name: str, words: Sequence[str] = ()) -> "ArgumentParser":
    """The parser of a subcommand; where the words ask for help, of what they ask it for."""
    from erase.attacks import attacks
    from erase.methods import methods
    from erase.support.options import brief_parser, with_entries

    command = COMMANDS[name]
    parser = brief_parser(name, command.text, command.config_file)
    command.add_options(parser)
    if not command.kind:
        return parser
    if command.kind == "method":
        text = "published: the settings of the method's authors' code"
        parser.add_argument("--preset", type=Preset, default="ours", help=text)
    entries = methods() if command.kind == "method" else attacks()
    return with_entries(parser, words, command.kind, entries)


def parsed(parser: "ArgumentParser", words: Sequence[str]) -> "Namespace":
    """The options, with a preset's in place of the method's defaults; those given win."""
    from erase.methods import preset_of
    from erase.support.options import dotted

    options = parser.parse_args(words)
    if options.get("preset", "ours") == "ours":
        return options
    preset = asdict(preset_of(options.method, options.preset))
    parser.set_defaults(dotted(preset, options.method))
    return parser.parse_args(words)


def on_stop(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    """What SIGINT and SIGTERM do from now on, each unless it is ignored, as in the background."""
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once with 130, while it has begun nothing; libraries may be half-read."""
    with suppress(OSError):
        os.write(2, f"erase: {STOPPED}\n".encode())  # a print may be under way
    os._exit(130)


def tell(text: str) -> int:
    """Print what was done: 0, also where nobody reads it; 2 where there is no room for it."""
    try:
        print(text, end="\n" if text else "", flush=True)
    except BrokenPipeError:
        return 0
    except OSError as error:
        complain(f"It is done, but what it says cannot be written ({error.strerror}); make room.")
        return 2
    return 0


def complain(message: str) -> None:
    """Print a sentence of ours to stderr, if anybody reads it."""
    with suppress(OSError):
        print(f"erase: {message}", file=sys.stderr, flush=True)


def drop_unread() -> None:
    """Leave nothing in the streams that the interpreter would stumble over as it ends."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
