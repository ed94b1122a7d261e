"""The command itself: quick help, option names, errors and exit codes."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from actscope.cli.main import VERBS, main
from actscope.core.errors import BadInputError, RunError

WITHOUT_TORCH = """
import sys
from actscope.cli.main import main
try:
    main({arguments!r})
except SystemExit as done:
    assert not done.code, done.code
heavy = sorted({{"torch", "transformers", "matplotlib", "pyarrow", "h5py"}} & set(sys.modules))
assert not heavy, heavy
"""


def verbs():
    return [name for name in VERBS.names() if name != "main"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([verb, "--help"] for verb in verbs()),
        ["runs", "list", "--help"],
    ],
    ids=" ".join,
)
def test_help_never_imports_torch(arguments):
    script = WITHOUT_TORCH.format(arguments=arguments)
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_answers_in_half_a_second():
    """In processor time, the best of three: other work on the machine only ever adds to it."""
    import resource

    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def once():
        before = spent()
        subprocess.run(
            [sys.executable, "-m", "actscope.cli.main", "--help"], capture_output=True, check=True
        )
        return spent() - before

    assert min(once() for _ in range(3)) < 0.5


def test_every_verb_is_listed_with_what_it_does():
    done = CliRunner().invoke(main, ["--help"])
    assert done.exit_code == 0
    for verb in verbs():
        assert verb.replace("_", "-") in done.output
        assert VERBS.get(verb).get_short_help_str()


def test_the_manual_has_every_verb_and_every_option_of_capture():
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    for verb in verbs():
        assert f"## actscope {verb.replace('_', '-')}" in manual
    for param in VERBS.get("capture").params:
        assert param.opts[0] in manual, param.opts[0]


def test_the_version():
    import actscope

    done = CliRunner().invoke(main, ["--version"])
    assert actscope.__version__ in done.output


def test_an_unknown_verb_says_which_may_be_meant():
    done = CliRunner().invoke(main, ["captur"])
    assert done.exit_code == 2
    assert "Did you mean 'capture'?" in done.output


@pytest.fixture
def probe():
    """A verb that shows what reaches it, for the time of a test."""
    seen = {}

    @click.command("probe")
    @click.option("--text-field")
    @click.option("--sites", multiple=True)
    @click.option("--fail", type=click.Choice(["bad_input", "run", "disk", "bug", "ctrl_c"]))
    def probe(**options):
        seen.update(options)
        errors = {
            "bad_input": BadInputError("it is wrong", got="[red]x[/red]", next_step="mend it"),
            "run": RunError("it broke"),
            "disk": OSError(28, "No space left on device"),
            "bug": ZeroDivisionError("oh"),
            "ctrl_c": KeyboardInterrupt(),
        }
        if options["fail"]:
            raise errors[options["fail"]]

    group = type(main)(name="actscope", **{"context_settings": main.context_settings})
    group.params = list(main.params)
    group.get_command = lambda ctx, name: probe
    from actscope.cli.main import _accept_debug

    _accept_debug(probe)
    return group, seen


def test_underscores_in_option_names_but_never_in_values(probe):
    group, seen = probe
    arguments = ["probe", "--text_field", "my_field", "--sites", "resid_post", "--sites=attn_out"]
    assert CliRunner().invoke(group, arguments).exit_code == 0
    assert seen["text_field"] == "my_field"
    assert seen["sites"] == ("resid_post", "attn_out")


@pytest.mark.parametrize(
    ("fail", "code", "says"),
    [
        ("bad_input", 2, ["error: it is wrong", "got: [red]x[/red]", "next: mend it"]),
        ("run", 1, ["error: it broke"]),
        ("disk", 1, ["No space left"]),
        ("bug", 1, ["unexpected ZeroDivisionError: oh", "--debug"]),
        ("ctrl_c", 130, ["stopped at once"]),
    ],
)
def test_errors_are_messages_with_exit_codes(probe, fail, code, says):
    group, _ = probe
    done = CliRunner().invoke(group, ["probe", "--fail", fail])
    assert done.exit_code == code
    assert "Traceback" not in done.stderr
    for text in says:
        assert text in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("where", ["before", "after"])
def test_debug_shows_the_traceback(probe, where):
    group, _ = probe
    arguments = ["probe", "--fail", "bad_input"]
    arguments = ["--debug", *arguments] if where == "before" else [*arguments, "--debug"]
    done = CliRunner().invoke(group, arguments)
    assert isinstance(done.exception, BadInputError)
