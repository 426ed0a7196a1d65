"""What all commands share: settings from the file and from flags, and exit statuses.

Flags are made from the fields of `Settings`, so that their names, types, help and domains have a single definition.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo

from ensemble_distill.cli import completing, render
from ensemble_distill.cli.flags import Assignments, Config, Quiet
from ensemble_distill.cli.panels import PANELS, own_panel, panel_of
from ensemble_distill.cli.ranks import together
from ensemble_distill.cli.statuses import exit_statuses
from ensemble_distill.errors import EdistillError
from ensemble_distill.settings import Settings, load_settings
from ensemble_distill.settings.assignments import parse_assignment

SHORT = {"batch-size": "-b", "workers": "-j"}


def command(
    app: typer.Typer,
    name: str,
    flags: Sequence[str] = (),
    *,
    settings: bool = True,
    long: bool = True,
    shared: bool = False,
) -> Callable[[Callable[..., None]], None]:
    """Register a function as the command `name`.

    Args:
        flags: dotted keys of `Settings` that get flags of their own, for instance "train.epochs".
        settings: whether the command reads `edistill.toml`; the function's first parameter is then `Settings`.
        long: whether the command can take long, and so has a `--quiet` that hides its progress.
        shared: whether all processes of torchrun take part; otherwise only the first one runs the command.
    """

    def register(function: Callable[..., None]) -> None:
        hints = get_type_hints(function, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values()]
        made = {_parameter_name(key): key for key in flags}

        def run(**given: Any) -> None:
            with exit_statuses(), together(shared) as runs, render.result_apart(given.pop("quiet", False)):
                if settings:
                    file = given.pop("config_file")
                    overrides = dict(parse_assignment(text) for text in given.pop("assignments") or ())
                    overrides |= {
                        key: _value(key, v) for n, key in made.items() if (v := given.pop(n)) not in (None, [])
                    }
                    given["settings"] = load_settings(file, overrides)
                if runs:
                    function(**given)

        parameters = own
        if settings:
            parameters = [p for p in own if p.name != "settings"]
            parameters += [_flag(parameter, key) for parameter, key in made.items()]
            parameters += _settings_parameters()
        if long:
            parameters.append(
                inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
            )
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in sorted(parameters, key=_place)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = _paragraphs(function.__doc__ or "")
        app.command(name)(run)

    return register


def _place(parameter: inspect.Parameter) -> int:
    """The position of a parameter in the help: arguments come first, dangerous options last."""
    told = get_args(parameter.annotation)[1]
    if isinstance(told, ArgumentInfo):
        return -1
    told.rich_help_panel = panel = told.rich_help_panel or own_panel(parameter.name)
    return PANELS.index(panel)


def _paragraphs(text: str) -> str:
    """A docstring with each paragraph on one line, which the terminal then wraps to its width."""
    return re.sub(r"(?<=\S)\n(?=[^\n\s])(?!Example: )", " ", inspect.cleandoc(text))


def _settings_parameters() -> list[inspect.Parameter]:
    return [
        inspect.Parameter("config_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config),
        inspect.Parameter("assignments", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Assignments),
    ]


def _parameter_name(key: str) -> str:
    return key.replace(".", "_").replace("-", "_")


def _field(key: str) -> FieldInfo:
    """The pydantic field of a dotted key."""
    section: Any = Settings
    *tables, last = key.replace("-", "_").split(".")
    for table in tables:
        section = section.model_fields[table].annotation
    field: FieldInfo = section.model_fields[last]
    return field


def _flag(parameter: str, key: str) -> inspect.Parameter:
    field = _field(key)
    word = key.rpartition(".")[2]
    kind = _plain_type(field.annotation)
    names = [f"--{word}/--no-{word}"] if kind is bool else [*([SHORT[word]] if word in SHORT else []), f"--{word}"]
    default = "" if field.default in (None, "", {}, ()) else f" Default {_shown(field.default)}."
    completed = completing.of_key(key)
    option = typer.Option(
        *names, help=f"{field.description}{default}", autocompletion=completed, rich_help_panel=panel_of(key)
    )
    return inspect.Parameter(
        parameter,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,  # not given, so that the file decides
        annotation=Annotated[kind | None, option],
    )


def _plain_type(annotation: Any) -> Any:
    """The type that a flag parses; pydantic checks the domain, so that flags and file raise the same errors."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    options = [t for t in get_args(annotation) if t is not type(None)]
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return _plain_type(options[0])
    if get_origin(annotation) in (dict, tuple):
        return list[str]  # repeated for each key or entry
    return annotation if annotation in (int, float, bool) else str


def _value(key: str, given: Any) -> Any:
    """The value of a flag as the file would have it; a table is given as A=B, once for each key."""
    if not isinstance(given, list) or get_origin(_field(key).annotation) is tuple:
        return given
    table = {}
    for text in given:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise EdistillError(f"--{key.rpartition('.')[2]} {text}: write two names with = between them.")
        if name in table:
            raise EdistillError(f"--{key.rpartition('.')[2]} names {name} twice. Name it once.")
        table[name] = value
    return table


def _shown(default: Any) -> str:
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)
