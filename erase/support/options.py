"""Command-line options from typed configs, and help that a person can read."""

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace

from erase.support.errors import cut, refused
from erase.support.files import expanded, read_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Made = TypeVar("Made", bound="DataclassInstance")
HELP = {"-h", "--help"}
# Defaults that say nothing.
UNTOLD: tuple[object, ...] = (None, "", [], (), False, argparse.SUPPRESS)
RUN_STATE = re.compile(r"training\.checkpoints\b")
RUN_STATE_MOVED = "Training state lies beside --output; leave out METHOD.training.checkpoints."
LARGEST_CONFIG, MOST_VALUES = 1 << 17, 10_000  # bytes, and values that it holds
TRUTHS = {"true", "yes", "on", "false", "no", "off"}  # as YAML has them, in any case
WHOLE_CONFIG = "Path to a configuration file."  # as jsonargparse offers for every config within


class Parser(ArgumentParser):
    """A parser that says in one sentence what is wrong, and of an option that is gone what to do.

    config: the file of options that was read last.
    """

    config = ""

    def parse_args(  # type: ignore[override]  # jsonargparse's own is not argparse's
        self, args: Sequence[str] | None = None, *others: Any, **options: Any
    ) -> Namespace:
        """As argparse's, which would read the flag as the start of a longer one.

        An option of true or false that is given bare is true. A list that is given twice is
        refused, for of the first nothing would be left.
        """
        for word in args or ():
            if RUN_STATE.search(word.partition("=")[0]):
                self.error(word)
        lists = (a for a in self._actions if a.nargs in ("+", "*"))
        for name in (name for action in lists for name in action.option_strings):
            if sum(self._stands_for(word.partition("=")[0], name) for word in args or ()) > 1:
                self.error(f"{name} is given twice; give all after one {name}")
        return super().parse_args(args and self._told(args), *others, **options)

    def _stands_for(self, word: str, name: str) -> bool:
        """Whether the word is the option's name, or the beginning of it and of no option's name."""
        short = word.startswith("--") and word != "--" and name.startswith(word)
        return word == name or (short and word not in self._option_string_actions)

    def _told(self, words: Sequence[str]) -> list[str]:
        """The words, with "=true" after each bare option of true or false."""
        kinds = {n: getattr(a, "_typehint", None) for a in self._actions for n in a.option_strings}
        after = [*words[1:], ""]
        return [
            f"{word}=true" if kinds.get(word) is bool and value.lower() not in TRUTHS else word
            for word, value in zip(words, after, strict=True)
        ]

    def instantiate(self, namespace: Namespace, *args: Any, **options: Any) -> Any:
        """As jsonargparse's; what is wrong with a value names the config that was read.

        It also gives the option's whole name, where only one fits what was said.
        """
        try:
            return super().instantiate(namespace, *args, **options)
        except ValueError as error:
            where, said = f"In the config {self.config}, " if self.config else "", str(error)
            usual = self.get_defaults()
            fits = [name[: name.rfind(".") + 1] for name, value in namespace.items()
                    if said.startswith(f"{name.rpartition('.')[2]} is {value!r:.80};")
                    and value != usual.get(name)]  # fmt: skip
            raise ValueError(f"{where}{fits[0] if len(fits) == 1 else ''}{said}") from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with 2 after the sentence."""
        if RUN_STATE.search(message):
            self.exit(2, f"erase: {RUN_STATE_MOVED}\n")
        said = cut(" ".join(message.split()).rstrip("."), 160)
        config = f" (config {self.config})" if self.config else ""
        self.exit(2, f"erase: {said}{config}; see {self.prog} --help.\n")


class _Once(yaml.SafeLoader):
    """As YAML's safe one, but that a name given twice is an error, and not the later one's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """ValueError naming what is given twice."""
        names = Counter(name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode))
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"it names {twice[0]} twice")
        return super().construct_mapping(node, deep)


class ConfigFile(ActionConfigFile):
    """A YAML file of options, read as UTF-8; ValueError naming the file if it is none."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        """As jsonargparse's, which would take the locale's encoding."""
        with refused(f"The config {values} cannot be read", "give a YAML file of options"):
            text = read_text(expanded(values), LARGEST_CONFIG)
            options = yaml.load(text, _Once)
            if not isinstance(options, dict) or _is_endless(options):
                raise ValueError("it names no options, or repeats itself without end")
        parser.config = values
        super().__call__(parser, cfg, text, option_string)
        for name in parser.groups or ():
            if name in cfg and not isinstance(cfg[name], Namespace):
                raise ValueError(f"{name} is {cfg[name]!r:.80} in the config {values}; give its "
                                 "options.")  # fmt: skip


def _is_endless(value: Any) -> bool:
    """Whether it holds more than anyone would write, as aliases within aliases do."""
    waiting, seen = [value], 0
    while waiting and seen < MOST_VALUES:
        one, seen = waiting.pop(), seen + 1
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return bool(waiting)


class BriefHelp(DefaultHelpFormatter):
    """The first sentence of what an option is, and its default."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options | {"width": 100, "max_help_position": 36})

    def add_argument(self, action: argparse.Action) -> None:
        """As argparse's, but for files of whole configs within, which YAML holds better."""
        if action.help != WHOLE_CONFIG:
            super().add_argument(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").partition(". ")[0].rstrip(".")
        told = action.option_strings and action.default not in UNTOLD
        return f"{text} (default: %(default)s)" if told else text


def brief_parser(name: str, text: str, config_file: bool = False) -> ArgumentParser:
    """The parser of a subcommand of `erase`, without options yet."""
    parser = Parser(
        prog=f"erase {name}", usage=f"erase {name} [options]", formatter_class=BriefHelp,
        description=f"{text[:1].upper()}{text[1:]}.",
    )  # fmt: skip
    if config_file:
        parser.add_argument("--config", action=ConfigFile, help="a YAML file of options")
    return parser


def with_entries(
    parser: ArgumentParser, words: Sequence[str], kind: str, entries: Mapping[str, Any]
) -> ArgumentParser:
    """The parser with the options of entries, which carry their names: --salun.density.

    entries: what has a config of its own, by name, such as methods. Those that the words name are
    added, for all would take as long as opening a model; and all, where a file may name any. Where
    the words ask for help it tells the common options, or an entry's own where `--kind` names it.
    """
    if HELP & set(words):
        return _helping(parser, words, kind, entries)
    chosen = [str(action.default) for action in parser._actions if action.dest == kind]
    flags = (word.partition("=")[0] for word in words if word.startswith("--c"))
    of_file = any("--config".startswith(flag) for flag in flags)  # or cut short
    for name, entry in entries.items():
        if of_file or any(name in word for word in (*words, *chosen)):
            parser.add_class_arguments(entry.config, name)
    return parser


def _helping(
    parser: ArgumentParser, words: Sequence[str], kind: str, entries: Mapping[str, Any]
) -> ArgumentParser:
    split = [part for word in words for part in word.split("=", 1)]
    begun = [len(word) > len("--") and f"--{kind}".startswith(word) for word in split]
    known = [name for i, name in enumerate(split) if name in entries and any(begun[:i])]
    if not known:
        parser.epilog = f"A method's or attack's own options: {parser.prog} --{kind} NAME --help"
        return parser
    said = (parser.description or "").rstrip(".")
    own = brief_parser(parser.prog.removeprefix("erase "), said)
    for name in known:
        own.add_class_arguments(entries[name].config, name)
    own.epilog = f"The common options: {parser.prog} --help"
    return own


def dotted(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values of nested fields by the names of their options, which begin with `name`."""
    nested = [
        dotted(value, f"{name}.{key}") if isinstance(value, dict) else {f"{name}.{key}": value}
        for key, value in values.items()
    ]
    return {option: value for part in nested for option, value in part.items()}


def made(config: type[Made], options: Namespace, **chosen: Any) -> Made:
    """The config of the options that are called as its fields, but for those chosen."""
    names = [field.name for field in fields(config) if field.init and field.name in options]
    return config(**{name: options[name] for name in names} | chosen)
