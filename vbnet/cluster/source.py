"""A YAML file as plain data that still knows its line numbers.

Errors in a lab file should point at the line the author wrote, so the loader keeps a line for every
key and value. It reads YAML the way editors and YAML 1.2 do: only ``true`` and ``false`` are booleans
(``restart: no`` stays text) and ``52:54:00:12:34:56`` stays an address instead of a base-60 number.

``${NAME}`` and ``${NAME:-default}`` in values are replaced from the environment; ``$$`` is one dollar sign.

The danger: the file is somebody's text. Its size, depth and node count (aliases multiply) are bounded before
anything is built from it, and nothing in it can name a Python type.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vbnet.errors import UsageError

FILE_LENGTH_MAX_BYTES = 1 << 20
DEPTH_MAX = 32
NODES_MAX = 100_000

Place = tuple[str | int, ...]
"""Where a value stands: ``("guests", "web", "nics", 0, "ip")``."""

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|(?P<bad>\{))"
)


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in a file: where it is, what it is, what its author can do."""

    line: int
    what: str
    fix: str

    def render(self, file: str) -> str:
        """Return ``file:line: what; fix``, the form editors and terminals turn into links."""
        return f"{file}:{self.line}: {self.what}; {self.fix}"


class TopologyError(UsageError):
    """A lab file is wrong (its author's mistake). Nothing was started."""

    def __init__(self, file: str, problems: Iterable[Problem]) -> None:
        self.file = file
        self.problems = sorted(set(problems))
        super().__init__("\n".join(problem.render(file) for problem in self.problems))


@dataclass
class Source:
    """A loaded file: its data, and the line of every place in it."""

    file: str
    data: dict[str, Any]
    lines: dict[Place, int] = field(default_factory=dict)

    def line_of(self, place: Place) -> int:
        """Return the 1-based line of ``place``, or of its nearest enclosing place that has one."""
        for length in range(len(place), -1, -1):
            if place[:length] in self.lines:
                return self.lines[place[:length]]
        return 1

    def problem(self, place: Place, what: str, fix: str) -> Problem:
        """Return a problem at ``place``."""
        return Problem(self.line_of(place), what, fix)


def load_source(path: Path, environment: Mapping[str, str] | None = None) -> Source:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: the file; at most 1 MiB.
        environment: where ``${NAME}`` is looked up; the process environment by default.

    Raises:
        TopologyError: unreadable, not YAML, duplicate keys, unknown variables, too big, too deep.
    """
    file = str(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(FILE_LENGTH_MAX_BYTES + 1)
    except OSError as error:
        raise TopologyError(
            file, [Problem(1, f"cannot read the file ({error.strerror})", "give the path of a lab file")]
        ) from error
    if len(content) > FILE_LENGTH_MAX_BYTES:
        raise TopologyError(file, [Problem(1, "the file is longer than 1 MiB", "split it into several labs")])
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise TopologyError(file, [Problem(line, "the file is not UTF-8 text", "save it as UTF-8")]) from error
    return parse_source(text, file, environment)


def parse_source(text: str, file: str, environment: Mapping[str, str] | None = None) -> Source:
    """Like :func:`load_source`, for text already in memory; ``file`` is only its name in messages."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise TopologyError(
            file,
            [
                Problem(
                    mark.line + 1 if mark else 1, f"this is not YAML ({error.problem})", "check indents, quotes, colons"
                )
            ],
        ) from error
    except yaml.YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise TopologyError(file, [Problem(line, f"this is not YAML ({error})", "remove that character")]) from error
    except RecursionError as error:
        raise TopologyError(file, [Problem(1, "the file nests too deep", f"use at most {DEPTH_MAX} levels")]) from error
    if not isinstance(root, yaml.MappingNode):
        raise TopologyError(
            file, [Problem(1, "the file is not a mapping", "start with `name:`, `switches:` and `guests:`")]
        )
    builder = _Builder(file, os.environ if environment is None else environment)
    data = builder.value(root, ())
    if builder.problems:
        raise TopologyError(file, builder.problems)
    return Source(file, data, builder.lines)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: fewer surprises, the same as editors' schema checks."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 -- PyYAML's own class attribute


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"^[-+]?[0-9]+\.[0-9]+$", "-+0123456789"),
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ("~", "n", "N", "")),
    ("tag:yaml.org,2002:merge", r"^(?:<<)$", "<"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


class _Builder:
    """Turns YAML nodes into data, noting lines and collecting every problem instead of stopping at the first."""

    def __init__(self, file: str, environment: Mapping[str, str]) -> None:
        self.file = file
        self.environment = environment
        self.problems: list[Problem] = []
        self.lines: dict[Place, int] = {(): 1}
        self.nodes = 0

    def value(self, node: yaml.Node, place: Place) -> Any:  # noqa: ANN401 -- YAML holds anything
        """Return the data of one node."""
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)
        self.nodes += 1
        if len(place) > DEPTH_MAX or self.nodes > NODES_MAX:
            raise TopologyError(
                self.file,
                [
                    Problem(
                        line, "the file nests too deep or repeats itself without end", "use fewer levels and aliases"
                    )
                ],
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*place, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, line)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        data: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                self._merge(value_node, place, data, line)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(line, "a key is not a plain word", "write `key: value`"))
                continue
            key = str(key_node.value)
            if key in first_lines:
                self.problems.append(
                    Problem(line, f"duplicate name `{key}`, first on line {first_lines[key]}", "rename or remove one")
                )
                continue
            first_lines[key] = line
            self.lines[*place, key] = line
            data[key] = self.value(value_node, (*place, key))
        return data

    def _merge(self, node: yaml.Node, place: Place, data: dict[str, Any], line: int) -> None:
        """``<<: *common``: keys of ``common`` that this mapping does not have itself."""
        merged = self.value(node, (*place, "<<"))
        if not isinstance(merged, dict):
            self.problems.append(Problem(line, "`<<` does not name a mapping", "write `<<: *anchor` of a mapping"))
            return
        for key, value in merged.items():
            data.setdefault(key, value)
            self.lines.setdefault((*place, key), self.lines.get((*place, "<<", key), line))

    def _scalar(self, node: yaml.Node, line: int) -> Any:  # noqa: ANN401 -- YAML holds anything
        text = self._substitute(str(node.value), line)
        tag = node.tag
        is_one_variable = _VARIABLE.fullmatch(str(node.value)) is not None
        if is_one_variable or (text != node.value and getattr(node, "style", None) is None):
            # A value that is nothing but a variable has the type of what replaces it, though `{...}` may force quotes.
            tag = str(_Loader("").resolve(yaml.ScalarNode, text, (True, False)))  # type: ignore[no-untyped-call] # untyped stub
            if not text and getattr(node, "style", None) is not None:
                tag = node.tag  # quotes around nothing are an empty text, as they are without a variable
        match tag.rpartition(":")[2]:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text) if len(text) < 20 else text  # noqa: PLR2004 -- beyond 64 bits it is text
            case "float":
                return float(text)
            case "str":
                return text
        self.problems.append(Problem(line, f"the tag `{tag}` means nothing here", "write a plain value"))
        return None

    def _substitute(self, text: str, line: int) -> str:
        def replace(match: re.Match[str]) -> str:
            if match["dollar"]:
                return "$"
            name = match["name"]
            if name is None:
                self.problems.append(
                    Problem(
                        line, f"`{text}` has an unfinished `${{`", "write ${NAME}, ${NAME:-default}, or $$ for a dollar"
                    )
                )
                return ""
            found = self.environment.get(name)
            if found:
                return found
            if match["default"] is not None:
                return match["default"]
            if found is None:
                self.problems.append(
                    Problem(line, f"the variable `{name}` is not set", f"set it, or write ${{{name}:-default}}")
                )
            return ""

        return _VARIABLE.sub(replace, text)
