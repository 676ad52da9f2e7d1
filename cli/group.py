"""The group of all commands: loads a command when it is called, and turns every exception into a line and an exit code."""

from __future__ import annotations

import gc
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from gnnstab import __version__

from . import interrupt
from .examples import epilog

FINDINGS, ERROR, NOTHING_EVALUABLE, INTERRUPTED = 1, 2, 3, 130


class Commands(click.Group):
    """A group whose commands stay unloaded until they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        from . import COMMANDS

        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        from . import COMMANDS

        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        command.epilog = epilog(cmd_name)
        # Click keeps the first help option that it makes for a command: one made outside this group must know -h as well.
        command.context_settings.setdefault("help_option_names", ["-h", "--help"])
        for parameter in command.params:
            if isinstance(parameter, click.Argument) and parameter.callback is None:
                parameter.callback = _refuse_empty
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of this name; a mistyped one is answered with those that come near."""
        from gnnstab.errors import hint

        from . import COMMANDS

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = hint(args[0], COMMANDS, "gnnstab --help lists them")
            ctx.fail(f"no such command {args[0]!r}; {near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone."""
        from . import COMMANDS

        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command line and exit; what click would do with errors is done by `run`."""
        # A short process that keeps most of what it makes: searching it for cycles every 700 objects is a twentieth of its time.
        gc.set_threshold(50_000, 20, 50)
        sys.exit(_flush(run(sys.argv[1:] if args is None else args)))


def _refuse_empty(_: click.Context, __: click.Parameter, value: Any) -> Any:
    """The value; an empty one is a variable that nobody has set, and as a path it would be the current folder."""
    if "" in (value if isinstance(value, tuple) else (value,)):
        raise click.BadParameter("is empty; was a variable not set? The current folder is '.'")
    return value


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=epilog(""))
@click.version_option(__version__, message="gnnstab %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def main(state: dict[str, bool], debug: bool) -> None:
    """Numerical stability of graph transformers: what went wrong, where, why, and proof that the fix works.

    Exit codes: 0 nothing found, 1 findings, 2 wrong usage or a file that cannot be read, 3 nothing could be judged.
    """
    state["debug"] |= debug


def run(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    with interrupt.listening(), warnings.catch_warnings():
        # What PyG does while it is imported is nothing that the user of a command could change.
        warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        code = _run(arguments)
        # What was not stopped at once may have failed because of it, or ended with what nobody waits for any more.
        if not interrupt.pressed() and code != INTERRUPTED:
            return code
    click.echo("gnnstab: interrupted", err=True)
    return INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    state = {"debug": False}
    if "_GNNSTAB_COMPLETE" in os.environ:
        from click.shell_completion import add_completion_class

        from .completion import Bash

        add_completion_class(Bash)
    try:
        result = click.Group.main(main, list(arguments), prog_name="gnnstab", obj=state, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _wrong_usage(_suggesting(error) if isinstance(error, click.NoSuchOption) else error)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return ERROR
    except SystemExit as error:  # Commands return their exit code: only other code ends the process, before a verdict.
        if _of_click(error):
            if "_GNNSTAB_COMPLETE" in os.environ:  # The answer to a shell that completes a word.
                raise
            _discard_output()  # The reader has gone.
            return ERROR
        from gnnstab.errors import UsageError
        from gnnstab.guest import exit_told

        if state["debug"]:
            raise UsageError(exit_told(error)) from error
        return _report(UsageError(exit_told(error)))
    except Exception as error:
        if interrupt.pressed():
            return INTERRUPTED
        if state["debug"]:
            raise
        return _report(error)


def _wrong_usage(error: click.ClickException) -> int:
    """How the command is called, then the error in one line, in the form of all others."""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} -h' for help.\n", err=True)
    text = error.format_message()
    click.echo(f"gnnstab: error: {text[:1].lower()}{text[1:]}", err=True)
    return ERROR


def _suggesting(error: click.NoSuchOption) -> click.UsageError:
    """The error with the options that really come near the unknown one; of a format's name with the one that takes it."""
    from gnnstab.errors import hint
    from gnnstab.report import format_names

    wanted, known = error.option_name.lstrip("-"), {o for p in _parameters(error) for o in p.opts}
    near = f"write --output {wanted}=PATH" if wanted in format_names() and "--output" in known else ""
    near = near or hint(error.option_name, known)
    return click.UsageError(f"no such option {error.option_name!r}{near and f'; {near}'}", error.ctx)


def _parameters(error: click.NoSuchOption) -> list[click.Parameter]:
    return error.ctx.command.get_params(error.ctx) if error.ctx else []


def _report(error: Exception) -> int:
    """One line on standard error."""
    from gnnstab.errors import GnnstabError, NothingEvaluable
    from gnnstab.report.escape import sentence
    from gnnstab.report.faces import speak

    text = sentence(speak(" ".join(str(error).split()), "cli"), 200, 2000)
    if isinstance(error, GnnstabError):
        click.echo(f"gnnstab: error: {text}", err=True)
        return NOTHING_EVALUABLE if isinstance(error, NothingEvaluable) else ERROR
    if isinstance(error, FileNotFoundError) and not _here():
        click.echo("gnnstab: error: the current folder was deleted; change to one that exists", err=True)
        return ERROR
    kind = type(error).__name__
    click.echo(f"gnnstab: error: {kind}: {text} (unexpected; --debug shows the traceback)", err=True)
    return ERROR


def _of_click(error: SystemExit) -> bool:
    """True where no code but this file's and click's has run."""
    frames = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return all(name == __name__ or name.partition(".")[0] == "click" for name in frames)


def _here() -> bool:
    """False where the current folder was deleted."""
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _flush(code: int) -> int:
    """Write what is buffered while an error can still be told."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        click.echo(f"gnnstab: error: cannot write to standard output: {error.strerror or error}", err=True)
        _discard_output()
        return ERROR
    return code


def _discard_output() -> None:
    """The reader has gone: send the rest nowhere, so that the interpreter does not complain when it shuts down."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
