"""Dataclasses of settings to and from nested dictionaries, as they stand in recipes, in config.json and in result files."""

import dataclasses
import hashlib
import json
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from raydd.errors import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A plain nested dictionary, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: dict[str, Any], prefix: str = "") -> T:
    """Build a configuration from nested dictionaries, as in a recipe or a `config.json`.

    Raises `ConfigError` with every unknown name and every value of the wrong type.
    """
    problems: list[str] = []
    result = _build(kind, values, prefix, problems)
    if problems:
        raise ConfigError(problems)
    return result


def _build(kind: Any, values: Any, prefix: str, problems: list[str]) -> Any:
    if not isinstance(values, dict):
        problems.append(f"{prefix.rstrip('.')}={values!r} has the wrong type; allowed: a table of settings.")
        return kind()
    hints = get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    problems += [f"{prefix}{name} is not a setting; known here: {', '.join(sorted(known))}." for name in values if name not in known]
    arguments = {}
    for name in sorted(known & values.keys()):
        hint, value = hints[name], values[name]
        if dataclasses.is_dataclass(hint):
            arguments[name] = _build(hint, value, f"{prefix}{name}.", problems)
        elif _fits(hint, value):
            arguments[name] = float(value) if hint is float else value
        else:
            problems.append(f"{prefix}{name}={value!r} has the wrong type; allowed: {_describe(hint)}.")
    return kind(**arguments)


def _fits(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint) and not (isinstance(value, bool) and bool not in map(type, get_args(hint)))
    if get_args(hint):
        return any(_fits(part, value) for part in get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(repr, get_args(hint)))
    if get_args(hint):
        return " or ".join(_describe(part) for part in get_args(hint))
    return "nothing" if hint is type(None) else hint.__name__


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted names: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def fingerprint(values: Any) -> str:
    """Sha-256 of any JSON-ready value, independent of key order; names stores, caches and runs by their content."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
