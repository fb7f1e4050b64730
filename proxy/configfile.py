"""Configuration files: from YAML text to typed settings, or to every fault in it at once.

What lives here: reading, checking and explaining. What may not: the settings themselves (``proxy.settings``,
``shard.settings``).

The text is walked as YAML *nodes*, not as Python values: nodes know their line, and a plain ``off`` stays the word
``off`` where a word is expected (YAML 1.1 would make it ``false``). Everything wrong is collected before anything is
reported, so that a user mends a file in one go.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from proxy.errors import UserError
from proxy.settings import ADDRESS, BYTES, SECONDS, LocalSettings, ProxySettings, split_address
from shard.settings import ClusterSettings

Settings = TypeVar("Settings", ProxySettings, LocalSettings)

_SIZE = re.compile(r"^(\d+)\s*(b|k|kb|m|mb|g|gb)?$", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|h)?$", re.IGNORECASE)
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_BYTES = (
    1024 * 1024
)  # a configuration is a few KB; this only keeps a mistaken path (a data file) from filling the memory


class Fault(msgspec.Struct, frozen=True):
    """One thing wrong with a file: where (line, from 1), which setting, what is wrong and what to do about it."""

    line: int
    key: str
    what: str
    cure: str

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        return f"{where}{self.what}; {self.cure}"


class SettingsError(UserError):
    """A configuration that cannot be used. ``path`` is the file, ``faults`` all that is wrong with it, by line.

    ``str()`` gives one line a fault: ``FILE:LINE: key: what is wrong; cure``.
    """

    def __init__(self, path: str, faults: list[Fault]) -> None:
        super().__init__(path, faults)
        self.path = path
        self.faults = sorted(faults, key=lambda fault: fault.line)

    def __str__(self) -> str:
        return "\n".join(f"{self.path}:{fault.line}: {fault}" for fault in self.faults)


def load(path: str | Path, kind: type[Settings]) -> Settings:
    """The settings of ``kind`` that the YAML file ``path`` holds.

    Raises SettingsError with every fault found: unreadable, no YAML, unknown keys, wrong types, values out of range,
    contradictions.
    """
    return _settings(str(path), _compose(str(path)), kind)


def load_any(path: str | Path) -> ProxySettings | LocalSettings:
    """As ``load``, for a file of either kind: what it holds tells which (see ``_kind``)."""
    root = _compose(str(path))
    if _kind(str(path), root) is LocalSettings:
        return _settings(str(path), root, LocalSettings)
    return _settings(str(path), root, ProxySettings)


def read_password(path: str, setting: str = "password_file") -> str:
    """The first line of the file ``path``. Raises SettingsError when there is none to read; never names its content."""
    try:
        line = Path(path).read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeError) as error:
        reason = (error.strerror or "unreadable") if isinstance(error, OSError) else "not a text file"
        raise SettingsError(
            path, [Fault(1, setting, f"cannot be read: {reason}", "name a readable file")]
        ) from None
    if not line:
        raise SettingsError(path, [Fault(1, setting, "the first line is empty", "put it there")])
    return line


def parse_size(text: str) -> int:
    """``"64kb"`` as bytes. Raises ValueError when it is no size. Units as the engine's configuration: kb = 1024, k =
    1000."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size")
    return int(match[1]) * _SIZE_UNITS[(match[2] or "").lower()]


def parse_duration(text: str) -> float:
    """``"500ms"`` as seconds. Raises ValueError when it is no duration."""
    match = _DURATION.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration")
    return float(match[1]) * _DURATION_UNITS[(match[2] or "").lower()]


# --- the file ---


def _compose(path: str) -> yaml.Node | None:
    """The file as YAML nodes; None when it holds nothing but comments."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        cure = "see config/proxy.yaml and config/local.yaml for one to copy"
        raise SettingsError(path, [Fault(1, "", f"cannot be read: {error.strerror}", cure)]) from None
    if len(raw) > _MAX_BYTES:
        raise SettingsError(path, [Fault(1, "", "is larger than 1 MB", "name a configuration file")])
    try:
        return yaml.compose(raw.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeError:
        raise SettingsError(path, [Fault(1, "", "is not UTF-8 text", "save it as UTF-8")]) from None
    except RecursionError:
        raise SettingsError(path, [Fault(1, "", "is nested too deeply", "see config/ for the form")]) from None
    except yaml.YAMLError as error:
        raise SettingsError(path, [_syntax_fault(error)]) from None


def _syntax_fault(error: yaml.YAMLError) -> Fault:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    line = mark.line + 1 if mark is not None else 1
    return Fault(line, "", f"not valid YAML: {problem}", "check the indentation, quotes and colons here and just above")


def _settings(path: str, root: yaml.Node | None, kind: type[Settings]) -> Settings:
    faults: list[Fault] = []
    value = _section(root, kind, "", faults)
    if isinstance(value, ProxySettings) and not value.cluster.seeds:
        line = _line_of(root, "cluster", "seeds")
        faults.append(
            Fault(line, "cluster.seeds", "is missing or empty", 'name a node of the cluster, as in ["127.0.0.1:7000"]')
        )
    if faults or value is None:
        raise SettingsError(path, faults)
    return typing.cast(Settings, value)


def _kind(path: str, root: yaml.Node | None) -> type[ProxySettings] | type[LocalSettings]:
    """Which kind of file this is: the kind that knows more of its keys, the name deciding a tie."""
    keys = set(_keys(root))
    inner = set(_keys(_child(root, "cluster")))
    local = len(keys & {"dir", "proxy"}) + len(inner & set(ClusterSettings.__struct_fields__))
    proxy = len(keys & (set(ProxySettings.__struct_fields__) - {"cluster"})) + len(inner & {"seeds", "username"})
    if local == proxy:
        return LocalSettings if "local" in Path(path).name else ProxySettings
    return LocalSettings if local > proxy else ProxySettings


def _keys(node: yaml.Node | None) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        yield from (str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)


def _line_of(node: yaml.Node | None, *names: str) -> int:
    """The line of the innermost of ``names`` that the file has."""
    line = 1
    for name in names:
        node = _child(node, name)
        if node is None:
            break
        line = _line(node)
    return line


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


# --- the walk: each function appends to `faults` and returns None where it found one ---


def _section(
    node: yaml.Node | None, kind: type[msgspec.Struct], key: str, faults: list[Fault]
) -> msgspec.Struct | None:
    if node is None or _is_null(node):
        return kind()
    if not isinstance(node, yaml.MappingNode):
        what = f"holds {_shown(node)} where settings are expected"
        faults.append(Fault(_line(node), key, what, "write its settings below it, one a line, indented"))
        return None
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    known = len(faults)
    for key_node, value_node in node.value:
        name = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        lines.setdefault(name, _line(key_node))
        full = f"{key}.{name}" if key else name
        if name not in fields:
            faults.append(Fault(_line(key_node), full, "unknown setting", _did_you_mean(name, fields)))
        elif name in values:
            faults.append(Fault(_line(key_node), full, "is given twice", "remove one of them"))
        else:
            values[name] = _value(value_node, fields[name].type, full, fields[name], faults)
    if len(faults) > known:
        return None
    try:
        return kind(**values)
    except ValueError as error:
        faults.append(_contradiction(str(error), key, _line(node), lines))
        return None


def _contradiction(message: str, key: str, line: int, lines: dict[str, int]) -> Fault:
    """What a settings class says of its own values: "setting what is wrong; cure", placed at that setting where the
    file has it."""
    name, _, rest = message.partition(" ")
    if name.rstrip(":") in lines:
        name = name.rstrip(":")
        line, key, message = lines[name], f"{key}.{name}" if key else name, rest
    what, _, cure = message.partition("; ")
    return Fault(line, key, what, cure or "change it, or leave it out to have the default")


def _value(node: yaml.Node, kind: Any, key: str, field: msgspec.structs.FieldInfo, faults: list[Fault]) -> Any:
    if _is_section(kind):
        return _section(node, kind, key, faults)
    element = _element(kind)
    if _is_section(element) and isinstance(node, yaml.SequenceNode):
        return tuple(_section(item, element, f"{key}[{number}]", faults) for number, item in enumerate(node.value))
    try:
        value = _converted(node, kind)
        if _unit(kind) == ADDRESS or any(_unit(inner) == ADDRESS for inner in typing.get_args(kind)):
            for address in value if isinstance(value, list | tuple) else (value,):
                split_address(address)
        return value
    except ValueError:
        cure = f"write {_expected(kind)}{_default(field)}"
        faults.append(Fault(_line(node), key, f"{_shown(node)} is not allowed here", cure))
        return None


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _converted(node: yaml.Node, kind: Any) -> Any:
    """The node's value as ``kind``. Raises ValueError (msgspec.ValidationError is one)."""
    element = _element(kind)
    if element is not None and isinstance(node, yaml.SequenceNode):
        return msgspec.convert([_converted(item, element) for item in node.value], kind)
    return msgspec.convert(_scalar(node, kind), kind)


def _scalar(node: yaml.Node, kind: Any) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError("not a single value")  # noqa: TRY004 -- a fault of the file, like every other
    if _is_null(node):
        return None
    if _unit(kind) == BYTES:
        return parse_size(node.value)
    if _unit(kind) == SECONDS:
        return parse_duration(node.value)
    if _wants_text(kind):
        return node.value
    return yaml.SafeLoader("").construct_object(node)


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _bare(kind: Any) -> Any:
    """``kind`` without its annotations and without ``| None``."""
    if typing.get_origin(kind) is typing.Annotated:
        return _bare(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return _bare(inner[0]) if len(inner) == 1 else kind
    return kind


def _options(kind: Any) -> tuple[Any, ...]:
    """What ``kind`` may be, where that is several things besides null."""
    bare = _bare(kind)
    return typing.get_args(bare) if typing.get_origin(bare) in (typing.Union, types.UnionType) else ()


def _metas(kind: Any) -> list[msgspec.Meta]:
    if typing.get_origin(kind) is typing.Annotated:
        inner, *metas = typing.get_args(kind)
        return [meta for meta in metas if isinstance(meta, msgspec.Meta)] + _metas(inner)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [meta for option in typing.get_args(kind) for meta in _metas(option)]
    return []


def _unit(kind: Any) -> str | None:
    return next((str(meta.extra["unit"]) for meta in _metas(kind) if meta.extra and "unit" in meta.extra), None)


def _element(kind: Any) -> Any:
    bare = _bare(kind)
    return typing.get_args(bare)[0] if typing.get_origin(bare) in (list, tuple) else None


def _wants_text(kind: Any) -> bool:
    bare = _bare(kind)
    if typing.get_origin(bare) is typing.Literal:
        return all(isinstance(option, str) for option in typing.get_args(bare))
    return bare is str


def _did_you_mean(name: str, fields: dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, fields, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"remove it; known here: {', '.join(fields)}"


def _expected(kind: Any) -> str:
    """What a user should write for ``kind``, in words."""
    element = _element(kind)
    if element is not None:
        return f"a list of which each is {_expected(element)}"
    orelse = " or null" if type(None) in typing.get_args(kind) else ""
    return _expected_one(kind) + orelse


def _expected_one(kind: Any) -> str:
    if _is_section(kind):
        return "a group of settings"
    if _options(kind):
        return " or ".join(_expected_one(option) for option in _options(kind))
    bare, metas = _bare(kind), _metas(kind)
    low = next((meta.ge for meta in metas if meta.ge is not None), None)
    high = next((meta.le for meta in metas if meta.le is not None), None)
    if _unit(kind) == BYTES:
        return "a size like 65536, 64kb, 1mb or 1gb"
    if _unit(kind) == SECONDS:
        return f"a duration like 2, 0.5, 500ms or 10s{' (0 is never)' if low == 0 else ', above 0'}"
    if _unit(kind) == ADDRESS:
        return "host:port, as in 127.0.0.1:7000"
    if typing.get_origin(bare) is typing.Literal:
        words = [str(option) for option in typing.get_args(bare)]
        return f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    if bare is bool:
        return "true or false"
    if bare is int:
        return "a whole number" + _range(low, high)
    if bare is float:
        return "a number" + _range(low, high)
    return "text"


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return f" of at least {low}" if low is not None else ""


def _default(field: msgspec.structs.FieldInfo) -> str:
    default = field.default
    if default is msgspec.NODEFAULT or default == ():
        return ""
    return f" (default {'null' if default is None else default})"


def _shown(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a group of settings"
    if _is_null(node):
        return "null"
    text = str(node.value)
    return repr(text if len(text) <= 40 else text[:37] + "...")
