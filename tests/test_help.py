import subprocess
import sys

import pytest

from erase.attacks import attacks
from erase.cli import build_parser, parsed
from erase.cli.commands import COMMANDS
from erase.methods import methods

MOST_LINES = 80
WITH_KIND = [(name, command.kind) for name, command in COMMANDS.items() if command.kind]


@pytest.mark.parametrize(("name", "kind"), WITH_KIND)
def test_help_tells_the_common_options_in_few_lines_and_nobodys_own(name, kind):
    said = build_parser(name, ["--help"]).format_help()
    assert len(said.splitlines()) <= MOST_LINES
    entries = methods() if kind == "method" else attacks()
    assert not [entry for entry in entries if f"--{entry}." in said]
    assert f"--{kind} NAME --help" in said


@pytest.mark.parametrize(("name", "kind"), WITH_KIND)
def test_help_of_one_tells_its_own_options_and_nobody_elses(name, kind):
    entries = methods() if kind == "method" else attacks()
    for entry in entries:
        said = build_parser(name, [f"--{kind}", entry, "--help"]).format_help()
        assert build_parser(name, [f"--{kind[:3]}={entry}", "-h"]).format_help() == said
        assert len(said.splitlines()) <= MOST_LINES
        assert f"--{entry}." in said
        assert not [other for other in entries if other != entry and f"--{other}." in said]


def test_the_list_of_subcommands_needs_nothing_heavy():
    script = (
        "import sys; from erase.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print({'torch', 'diffusers', 'transformers', 'jsonargparse'} "
        "& sys.modules.keys())"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert said.stdout.splitlines()[-1] == "set()"
    assert all(name in said.stdout for name in COMMANDS)


def test_names_are_listed_with_what_they_serve(capsys):
    from erase.cli import main

    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(methods())
    assert main(["attacks"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(attacks())


def test_a_share_that_may_be_none_is_given_as_0():
    words = ["--concept", "ghost", "--method", "harden", "--harden.forget_share", "0"]
    parser = build_parser("run", words)
    assert parser.instantiate(parsed(parser, words)).harden.forget_share == 0


@pytest.mark.parametrize(
    ("words", "name", "told"),
    [
        ("run --concept ghost --dry_run", "dry_run", True),
        ("run --dry_run true --concept ghost", "dry_run", True),
        ("run --dry_run=false --concept ghost", "dry_run", False),
        ("evaluate --rescore seen", "rescore", True),
        ("compose --sum a b --output c", "sum", True),
        ("compose a b --output c --sum no", "sum", False),
        ("app --public", "public", True),
        ("app --public true --port 7860", "public", True),
        ("run --salun.training.use_ema --concept ghost", "salun.training.use_ema", True),
    ],
)
def test_what_is_true_or_false_is_told_bare_or_with_a_value(words, name, told):
    command, *options = words.split()
    assert parsed(build_parser(command, options), options)[name] is told
