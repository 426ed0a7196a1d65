"""Typer's usage errors, reported like all other mistakes: what is wrong, with the value, and what to do.

Typer's errors have no public names, and their names vary with its version, so they are recognized by their attributes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ensemble_distill.errors import meant, nearest
from ensemble_distill.runtime.problems import Problem, mended, said

HELP = ("--help", "-h")
CHOICE = re.compile(r"'(?P<given>.*)' is not one of (?P<choices>'.*')", re.DOTALL)
EXTRA = re.compile(r"unexpected extra argument(?:s|\(s\))? \((?P<words>.*)\)", re.DOTALL)


def is_usage_error(error: BaseException) -> bool:
    """Whether this is typer's error for an invalid command line."""
    return callable(getattr(error, "format_message", None))


def is_help(error: BaseException) -> bool:
    """Whether it is typer's request to show the help, for a command line without any words."""
    return type(error).__name__ == "NoArgsIsHelpError"


def told(error: Any, words: Sequence[str], group: Any) -> str:
    """What is wrong with a command line, and what to do.

    Args:
        error: raised by typer.
        words: the command line, without the program's name.
        group: the group of all commands.
    """
    command = _command(error, words, group)
    option, parameter = getattr(error, "option_name", None), getattr(error, "param", None)
    if option is not None:
        known = _options(command)
        return _of_value(option, known.get(option), error) if option in known else _no_option(option, words, command)
    if parameter is not None:
        return _missing(parameter, command) if hasattr(error, "param_type") else _bad(parameter, error, command)
    extra = EXTRA.search(error.format_message())
    if extra is not None:
        return _extra(extra["words"], command)
    return f"{error.format_message().rstrip('.')}. {_ask(command)}"


def no_command(name: str, known: Sequence[str]) -> str:
    """What is wrong with a first word that is not a command, and what to do."""
    return f"There is no command {shlex.quote(name)}. {meant(name, known, 'Run edistill --help for all of them.')}"


def _command(error: Any, words: Sequence[str], group: Any) -> Any:
    """The command that the line refers to; the group if it names none."""
    context = getattr(error, "ctx", None)
    if context is not None:
        return context.command
    return next((group.commands[word] for word in words if word in group.commands), group)


def _named(command: Any) -> str:
    return "edistill" if hasattr(command, "commands") else f"edistill {command.name}"


def _ask(command: Any, what: str = "what it takes") -> str:
    return f"Run {_named(command)} --help for {what}."


def _options(command: Any) -> dict[str, Any]:
    """The parameter behind each name of a command's options; None for help."""
    known: dict[str, Any] = dict.fromkeys(HELP)
    for parameter in command.params:
        if parameter.param_type_name == "option":
            known |= dict.fromkeys((*parameter.opts, *parameter.secondary_opts), parameter)
    return known


def _arguments(command: Any) -> Iterator[str]:
    yield from (_label(one) for one in command.params if one.param_type_name == "argument")


def _label(parameter: Any) -> str:
    """A parameter's name in the help: an option's long name, or an argument's metavar."""
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name.upper()).strip("[]")


def _helped(parameter: Any) -> str:
    """A parameter's help, without a final period."""
    return (getattr(parameter, "help", None) or "").rstrip(".")


# --- kinds of mistakes ------------------------------------------------------------------------------------------


def _no_option(option: str, words: Sequence[str], command: Any) -> str:
    written = _written(option, words)
    called = next((word for word in words if word in getattr(command, "commands", ())), None)
    if called is not None:
        remedy = f"Put options of a command behind it: edistill {called} {written}"
    else:
        # typer reads `-epochs` letter by letter
        long = [name for name in _options(command) if name.startswith("--")]
        remedy = meant(f"--{written.lstrip('-')}", long, _ask(command, "its options"))
    return f"{_named(command)} has no option {written}. {remedy}"


def _written(option: str, words: Sequence[str]) -> str:
    """The word that contains an unknown option, since typer reads -q=3 as -q and -=."""
    for word in words:
        name = word.partition("=")[0]
        if name == option:
            return name
        if not option.startswith("--") and re.match(r"-[^-]", word) and option[1:] in word[1:]:
            return word
    return option


def _of_value(option: str, parameter: Any, error: Any) -> str:
    """The message for an option that lacks a value, or must not have one."""
    if "not take" not in error.format_message():
        helped = "" if parameter is None else f": {_helped(parameter)}"
        return f"{option} is given no value. Write {option} VALUE{helped}."
    other = [] if parameter is None else [name for name in parameter.secondary_opts if name != option]
    return f"{option} takes no value. Write {' or '.join([option, *other])} alone."


def _missing(parameter: Any, command: Any) -> str:
    helped = _helped(parameter)
    what = f": {helped[:1].lower()}{helped[1:]}" if helped else ""
    example = re.search(r"(?m)^Example: (.+)$", command.help or "")
    instance = "" if example is None else f", as in {example[1]}"
    return f"{_named(command)} lacks {_label(parameter)}{what}. Give it{instance}"


def _extra(words: str, command: Any) -> str:
    first, *_ = words.split() or [""]
    takes = list(_arguments(command))
    kind = f"takes {' and '.join(takes)} alone" if takes else "takes no arguments"
    near = nearest(f"--{first}", list(_options(command)), cutoff=0.8)
    remedy = f"Did you mean {near[0]}?" if near else f"Leave it out, or see {_named(command)} --help for its options."
    given = words or "''"
    return f"{_named(command)} {kind}, and is given {given} besides. {remedy}"


def _bad(parameter: Any, error: Any, command: Any) -> str:
    """The message for a value that an option or an argument does not accept."""
    name = _label(parameter)
    if (found := CHOICE.search(error.message)) is not None:
        choices = re.findall(r"'([^']*)'", found["choices"])
        remedy = meant(found["given"], choices, "Give one of these.")
        return f"{name} is '{found['given']}', and not one of {', '.join(choices)}. {remedy}"
    problem = _problem(error)
    if problem is None:
        return f"{name}: {error.message.rstrip('.')}. {_ask(command)}"
    return f"{name} is {problem['input']!r}: {said(problem)}. {mended(problem) or _ask(command)}"


def _problem(error: BaseException) -> Problem | None:
    """The problem that pydantic found, which newer versions of typer use to parse values; None if there is none."""
    errors = getattr(error.__cause__, "errors", None)
    return errors()[0] if callable(errors) else None
