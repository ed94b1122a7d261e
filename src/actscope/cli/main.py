"""The command itself: finds its verbs in this folder and turns errors into exit codes.

Exit code 2: what was asked for cannot be done. 1: it failed while running. 130: Ctrl-C.
"""

from __future__ import annotations

import difflib
from typing import Any

import click

from actscope.cli._errors import explain
from actscope.core.registry import Registry

__all__ = ["VERBS", "main"]

VERBS: Registry[click.Command] = Registry("actscope.cli", "COMMAND", "command")
_NO_VERB = "main"
_DEBUG = "actscope.debug"


class VerbGroup(click.Group):
    """A group whose verbs are the files of this folder, imported when first used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in kebab-case."""
        return [name.replace("_", "-") for name in VERBS.names() if name != _NO_VERB]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name; kebab-case and underscores are one."""
        name = cmd_name.replace("_", "-")
        if name not in self.list_commands(ctx):
            return None
        command = VERBS.get(name)
        _accept_debug(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say which one may be meant."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; an error becomes a message in red and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.meta.get(_DEBUG):
                raise
            ctx.exit(explain(error))


def _option_name(name: str) -> str:
    """``--token_ids`` is ``--token-ids``. Values of options never come through here."""
    return name.replace("_", "-")


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_DEBUG] = True  # one dictionary for all contexts of an invocation


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        help="Show the traceback of an error.",
    )


def _accept_debug(command: click.Command) -> None:
    """Let ``--debug`` stand after the verb as well as before it."""
    if any("--debug" in param.opts for param in command.params):
        return
    command.params.append(_debug_option())
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _accept_debug(inner)


@click.group(
    name="actscope",
    cls=VerbGroup,
    context_settings={
        "token_normalize_func": _option_name,
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(package_name="actscope", prog_name="actscope")
def main() -> None:
    """Capture what a language model computes, keep it safe, and study it."""


main.params.append(_debug_option())

if __name__ == "__main__":
    main()
