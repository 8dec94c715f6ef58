"""From a plain function to a verb of the command line, and the group that loads verbs when they are needed."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, cast, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from fleetbox.errors import UsageError
from fleetbox_cli.render import Output, render
from fleetbox_cli.report import guarded
from fleetbox_cli.settings import Settings

HELP_WIDTH = 100
COMMON_PREFIX = "common_"


def _remember(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    if value:
        setattr(ctx.obj, str(param.name).removeprefix(COMMON_PREFIX), value)
    return value


def _common(annotation: type, *names: str, help: str, metavar: str | None = None) -> Any:  # noqa: A002 - Typer's word
    option = typer.Option(
        *names, help=help, metavar=metavar, callback=_remember, expose_value=False, is_eager=True, show_default=False
    )
    return Annotated[annotation, option]


COMMON = {
    "json": (_common(bool, "--json", help="Print JSON, for programs."), False),
    "quiet": (_common(bool, "--quiet", "-q", help="Print results and errors only."), False),
    "debug": (_common(bool, "--debug", help="Show tracebacks."), False),
    "cluster": (
        _common(str, "--cluster", metavar="CLUSTER", help="Look for members there. [env: FLEETBOX_CLUSTER]"),
        "",
    ),
}
"""The options that every verb takes: their Typer annotation and default."""


def _with_common(run: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> None:
    """Give `run` the signature that Typer reads: the context, `parameters`, and the common options."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", keyword, annotation=typer.Context)
    common = [inspect.Parameter(COMMON_PREFIX + n, keyword, annotation=a, default=d) for n, (a, d) in COMMON.items()]
    own = [p.replace(kind=keyword) for p in parameters]
    signature = inspect.Signature([context, *own, *common])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}


def verb(
    examples: str, *, name: str = "", passthrough: bool = False
) -> Callable[[Callable[..., Output | None]], TyperCommand]:
    """Make a command of a function whose first parameter is the `Settings` and whose docstring is the help.

    `examples` are `command  # what it does` lines. With `passthrough`, everything after the first argument belongs to
    the guest's command, options included.
    """

    def decorate(function: Callable[..., Output | None]) -> TyperCommand:
        def run(ctx: typer.Context, **options: Any) -> None:
            ctx.obj.parsed = True
            own = {name: value for name, value in options.items() if not name.startswith(COMMON_PREFIX)}
            output = function(ctx.obj, **own)
            if output is not None:
                raise typer.Exit(render(output, ctx.obj))

        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
        _with_common(run, parameters[1:])
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command(
            name or function.__name__.rstrip("_"),
            cls=Command,
            help=inspect.getdoc(function),
            epilog=f"\b\nExamples:\n{inspect.cleandoc(examples)}",
            context_settings={"allow_interspersed_args": not passthrough, "max_content_width": HELP_WIDTH},
        )(run)
        return cast("TyperCommand", typer.main.get_command(app))

    return decorate


class _LazyCoercion:
    """Coercion that is skipped for a value which already is what was asked for.

    Typer builds a pydantic adapter for every text option, given or not, and pydantic takes 80 ms to import.
    """

    def __init__(self, param: Any) -> None:
        wanted = param.type_descriptor.annotation
        self._element = get_args(wanted)[0] if param.multiple or param.nargs == -1 else wanted

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        values = value if several else [value]
        if isinstance(self._element, type) and all(isinstance(v, self._element) for v in values):
            return value
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param, ctx)


def _lazily_coerced(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "_runtime_param", param) is None:
            param._runtime_param = _LazyCoercion(param)
    return params


class Command(TyperCommand):
    """A verb."""

    def get_params(self, ctx: Any) -> Any:
        return _lazily_coerced(super().get_params(ctx))


@dataclass(frozen=True)
class Entry:
    """A verb before it is loaded: `module:attribute`, one line of help, the section of the help it stands in."""

    target: str
    help: str
    section: str = "Commands"

    def load(self) -> TyperCommand | LazyGroup:
        module, _, attribute = self.target.partition(":")
        return cast("TyperCommand | LazyGroup", getattr(importlib.import_module(module), attribute))


class LazyGroup(TyperGroup):
    """A group that knows its verbs by a table and imports only the one that is called. Alone, it shows its help."""

    def __init__(self, name: str, help: str, entries: Mapping[str, Entry], epilog: str = "") -> None:  # noqa: A002
        def run(ctx: typer.Context, **_: Any) -> None:
            """Common options may stand before the verb, too."""

        _with_common(run, ())
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.callback()(run)
        parsed = typer.main.get_group(app)
        super().__init__(
            name=name,
            help=help,
            epilog=epilog,
            params=parsed.params,
            callback=parsed.callback,
            context_settings={"max_content_width": HELP_WIDTH},
            rich_markup_mode=None,
        )
        self.entries = entries

    def get_params(self, ctx: Any) -> Any:
        return _lazily_coerced(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = self.entries.get(cmd_name)
        return entry.load() if entry else None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.entries:
            import difflib

            close = difflib.get_close_matches(args[0], self.entries, n=1)
            path = ctx.command_path
            raise UsageError(
                f"there is no command {args[0]!r}",
                hint=f"did you mean `{path} {close[0]}`?" if close else f"`{path} --help` lists the commands",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.entries))
        for section in dict.fromkeys(e.section for e in self.entries.values()):
            with formatter.section(section):
                formatter.write_dl([(n.ljust(width), e.help) for n, e in self.entries.items() if e.section == section])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        records = [r for p in self.get_params(ctx) if (r := p.get_help_record(ctx))]
        with formatter.section("Options"):
            formatter.write_dl(records)

    def main(  # type: ignore[override]  # Typer's further switches have no meaning here
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **_: Any
    ) -> NoReturn:
        """Run a command line and exit with its code."""
        words = list(sys.argv[1:] if args is None else args)
        settings = Settings(json="--json" in words, debug="--debug" in words)
        sys.exit(guarded(lambda: self._run(prog_name or self.name or "fleetbox", words, settings), settings))

    def _run(self, prog_name: str, words: list[str], settings: Settings) -> int:
        given = Settings()
        try:
            with self.make_context(prog_name, words, obj=given) as ctx:
                self.invoke(ctx)
        except typer.Exit as e:
            return e.exit_code
        except typer.Abort:
            raise KeyboardInterrupt from None
        except typer.TyperException as e:
            raise _usage_error(e, prog_name) from e
        finally:
            # An error of the command line itself goes by what the words look like, any other by what they mean.
            if given.parsed:
                vars(settings).update(vars(given))
        return 0


def _usage_error(error: typer.TyperException, prog_name: str) -> UsageError:
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx else prog_name
    message = " ".join(error.format_message().split()).rstrip(".")
    return UsageError(message[:1].lower() + message[1:], hint=f"`{path} --help` shows how it is used")
