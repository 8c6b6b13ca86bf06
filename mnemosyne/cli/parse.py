# SPDX-License-Identifier: Apache-2.0
"""Flags of a verb into its frozen config, with tyro, and every mistake in one sentence.

tyro draws boxes around its errors and ends the process. Names of flags and values of ``Literal``
fields are therefore checked first, which also finds the nearest valid one; whatever is left for
tyro to find is taken out of its box.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

ConfigT = TypeVar("ConfigT")


def nearest(value: str, valid: Sequence[str]) -> str:
    """The entry of ``valid`` (not empty) that looks most like ``value``.

    Example:
      >>> nearest("tain", ["train", "plot"])
      'train'
    """
    return max(
        valid, key=lambda entry: difflib.SequenceMatcher(None, value.lower(), entry.lower()).ratio()
    )


def require_tyro() -> None:
    """Raises ModuleNotFoundError, which names the package, if the extra ``cli`` is missing."""
    import tyro  # noqa: F401


def parse(
    config_class: type[ConfigT],
    flags: Sequence[str],
    program: str,
    description: str,
    default: ConfigT | None = None,
) -> ConfigT | None:
    """Parses ``flags``.

    Args:
      config_class: a frozen dataclass; nested dataclasses become ``--group.flag``.
      flags: arguments after the verb.
      program: what the help text calls the command.
      description: one line for the help text.
      default: where values of flags that are not given come from; ``None`` takes the class's own.

    Returns:
      The config, or ``None`` if help was asked for and has been printed.

    Raises:
      ValueError: in one sentence, for anything wrong with the flags.
    """
    import tyro

    if not any(flag in ("-h", "--help") for flag in flags):
        _check_flags(config_class, flags)
    arguments: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                config_class, args=list(flags), prog=program, description=description, **arguments
            )
    except SystemExit as end:
        if not end.code:
            return None
        raise ValueError(_unboxed(errors.getvalue())) from None


def field_help(config_class: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, where its source can be read."""
    try:
        source = textwrap.dedent(inspect.getsource(config_class))
    except (OSError, TypeError):
        return {}
    body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
    found = {}
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def flags_class(config_class: type, omit: Sequence[str]) -> Any:
    """A frozen dataclass with the fields of another, some left out, and without its checks.

    A verb that sets a field by a flag of its own must not offer it twice; and the checks of the
    original belong after the parsing, when all of its fields are known.

    Args:
      config_class: a frozen dataclass whose fields all have defaults.
      omit: fields to leave out.
    """
    import tyro

    hints, texts = typing.get_type_hints(config_class), field_help(config_class)
    fields = []
    for field in dataclasses.fields(config_class):
        if field.name in omit:
            continue
        kind = Annotated[hints[field.name], tyro.conf.arg(help=texts.get(field.name, ""))]
        default: Any = field.default
        if default is dataclasses.MISSING:
            default = dataclasses.field(default_factory=field.default_factory)
        fields.append((field.name, kind, default))
    made = dataclasses.make_dataclass(f"{config_class.__name__}Flags", fields, frozen=True)
    made.__doc__ = (config_class.__doc__ or "").split("\n")[0]
    made.__module__ = config_class.__module__
    return made


def from_flags(config_class: type[ConfigT], flags: Any, **omitted: Any) -> ConfigT:
    """The original config of a :func:`flags_class`, with its checks.

    Raises:
      ValueError: from those checks.
    """
    given = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}
    return config_class(**given, **omitted)


def to_flags(made: Any, config: Any) -> Any:
    """An instance of a :func:`flags_class` with the values of a config of the original class."""
    return made(**{field.name: getattr(config, field.name) for field in dataclasses.fields(made)})


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """The value that ``--name`` has on the command line, if it is there.

    Example:
      >>> flag_value(["--seed", "3", "--env=brax:ant"], "env")
      'brax:ant'
    """
    value = None
    for i, flag in enumerate(flags):
        head, equals, tail = flag.partition("=")
        if head.replace("_", "-") == f"--{name}":
            value = tail if equals else (flags[i + 1] if i + 1 < len(flags) else None)
    return value


def _leaf_fields(config_class: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every flag without its dashes, and the type of its value."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        name = prefix + field.name.replace("_", "-")
        positional = False
        if get_origin(kind) is Annotated:
            positional = any("Positional" in str(marker) for marker in get_args(kind)[1:])
            kind = get_args(kind)[0]
        if dataclasses.is_dataclass(kind):
            yield from _leaf_fields(typing.cast(type, kind), f"{name}.")
        elif not positional:
            yield name, kind


def _check_flags(config_class: type, flags: Sequence[str]) -> None:
    """Refuses unknown flags and unknown values of ``Literal`` ones, naming the nearest valid."""
    known = dict(_leaf_fields(config_class))
    switches = [name for name, kind in known.items() if kind is bool]
    negated = {
        "".join(name.rpartition(".")[:2]) + f"no-{name.rpartition('.')[2]}" for name in switches
    }
    for i, flag in enumerate(flags):
        if not flag.startswith("--"):
            continue
        head, equals, tail = flag.partition("=")
        name = head[2:].replace("_", "-")
        if name not in known and name not in negated:
            best = nearest(name, [*known, *negated])
            raise ValueError(f"unknown flag {head!r}; the nearest valid one is '--{best}'")
        value = tail if equals else (flags[i + 1] if i + 1 < len(flags) else None)
        choices = _choices(known.get(name))
        if choices and value is not None and value not in choices:
            listed = ", ".join(choices)
            raise ValueError(
                f"unknown value {value!r} for {head}; "
                f"the nearest of {listed} is {nearest(value, choices)!r}"
            )


def _choices(kind: Any) -> list[str]:
    """The values that a ``Literal`` (or an optional one) allows; empty for any other type."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if get_origin(kind) in (Union, types.UnionType):
        parts = [_choices(part) for part in get_args(kind) if part is not type(None)]
        found = [choice for part in parts for choice in part]
        return [*found, "None"] if all(parts) else []
    return []


def _unboxed(text: str) -> str:
    """The message inside one of tyro's boxes, on one line, without its title and its advice.

    Boxes are drawn with Unicode or, where the output may not take it, with ASCII characters.
    """
    message: list[str] = []
    for line in [line for line in text.splitlines() if line.strip()][1:]:
        line = line.strip(" │╭╮╰╯|+")
        ends = not line.strip("─-") or line.startswith(("Got errors", "For full helptext"))
        if ends and message:
            break
        if not ends:
            message.append(line)
    sentence = re.sub(r"\s+", " ", " ".join(message)).strip()
    return (sentence[:1].lower() + sentence[1:]).rstrip(".") or "the flags could not be understood"


def from_json(config_class: type[ConfigT], data: Any, where: str) -> ConfigT:
    """A frozen config from what its JSON holds; absent fields keep their defaults.

    Raises:
      ValueError: unknown field or a value of the wrong type, naming it.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Sizes:
      ...     hidden: tuple[int, ...] = ()
      >>> from_json(Sizes, {"hidden": [64, 64]}, "config.json")
      Sizes(hidden=(64, 64))
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where} must hold an object, not {data!r}")
    hints = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, config_class))]
    for name in data:
        if name not in names:
            raise ValueError(
                f"{where} has an unknown field {name!r}; "
                f"the nearest valid one is {nearest(name, names)!r}"
            )
    return config_class(
        **{
            name: _from_json(hints[name], value, f"{name!r} in {where}")
            for name, value in data.items()
        }
    )


def _from_json(kind: Any, value: Any, where: str) -> Any:
    """One value as its type, or a ValueError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return from_json(typing.cast(type, kind), value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _from_json(next(part for part in arguments if part is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_from_json(arguments[0], entry, where) for entry in value)
    if origin is Literal and value in arguments:
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise ValueError(f"{where} has the value {value!r}, which is of the wrong type")
