"""A graph as text that other programs draw (DOT, Mermaid), and as a picture of its own (SVG).

The picture is laid out in rows: uplinks, switches, shared buses, guests, devices. Within a row, nodes stand below what
they are joined to; a long row is broken. Nothing but the standard library is needed for it.

Danger: names come from lab files and guests. Each language has its own escapes here, and none lets a name end its
label; characters that XML cannot have become question marks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from xml.etree import ElementTree as ET

from vbnet.cluster.graph import Edge, Graph, Node

__all__ = ["LANGUAGES", "to_dot", "to_mermaid", "to_svg"]

ROWS: Final = ("operator", "uplink", "switch", "bus", "guest", "device")
"""Kinds of node from top to bottom."""

FILL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "uplink": "#fdf3d8",
        "switch": "#dbe9f9",
        "operator": "#eeeeee",
        "bus": "#e6e0f5",
        "guest": "#e2f3e0",
        "device": "#f3e6dc",
    }
)
STROKE: Final[Mapping[str, str]] = MappingProxyType({"ok": "#5b6470", "down": "#9aa0a6", "fault": "#c5221f"})
INK: Final = "#202124"

# ---- DOT -----------------------------------------------------------------------------------------------------------


def to_dot(graph: Graph) -> str:
    """Return the graph in the language of Graphviz."""
    lines = [f"graph {_dot(graph.name)} {{", "  rankdir=TB;", '  node [shape=box, style="rounded,filled"];']
    for node in graph.nodes:
        label = "\n".join((node.label, *node.lines))
        look = f"fillcolor={_dot(FILL[node.kind])}, color={_dot(STROKE[node.state])}"
        lines.append(f"  {_dot(node.id)} [label={_dot(label)}, {look}];")
    for edge in graph.edges:
        style = "dashed" if edge.kind == "signal" or edge.state == "down" else "solid"
        arrow = ", dir=forward, constraint=false" if edge.kind == "signal" else ""
        look = f"color={_dot(STROKE[edge.state])}, style={style}{arrow}"
        lines.append(f"  {_dot(edge.source)} -- {_dot(edge.target)} [label={_dot(chr(10).join(edge.label))}, {look}];")
    for kind in ("switch", "uplink"):
        same = [_dot(node.id) for node in graph.nodes if node.kind == kind]
        if same:
            lines.append(f"  {{ rank=same; {'; '.join(same)}; }}")
    return "\n".join([*lines, "}", ""])


def _dot(text: str) -> str:
    """A quoted string: a backslash is one, not the beginning of an escape."""
    return '"' + _plain(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


# ---- Mermaid -------------------------------------------------------------------------------------------------------

_MERMAID_ESCAPES: Final = str.maketrans(
    {character: f"#{ord(character)};" for character in '#&"<>`[](){}|\\;%'} | {"\n": "<br/>"}
)


def to_mermaid(graph: Graph) -> str:
    """Return the graph in the language of Mermaid, as Markdown pages draw it."""
    names = {node.id: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = ["flowchart TD"]
    for node in graph.nodes:
        left, right = ("([", "])") if node.kind in {"switch", "bus"} else ("[", "]")
        label = "\n".join((node.label, *node.lines))
        lines.append(f'  {names[node.id]}{left}"{_mermaid(label)}"{right}:::{node.kind}')
    for edge in graph.edges:
        label = f'|"{_mermaid(chr(10).join(edge.label))}"|' if edge.label else ""
        line = "-.->" if edge.kind == "signal" else "-.-" if edge.state == "down" else "---"
        lines.append(f"  {names[edge.source]} {line}{label} {names[edge.target]}")
    for number, edge in enumerate(graph.edges):
        if edge.state != "ok":
            lines.append(f"  linkStyle {number} stroke:{STROKE[edge.state]}")
    bad = [names[node.id] for node in graph.nodes if node.state != "ok"]
    lines += [f"  classDef {kind} fill:{FILL[kind]},stroke:{STROKE['ok']},color:{INK}" for kind in ROWS]
    lines += [f"  style {name} stroke:{STROKE['fault']}" for name in bad]
    return "\n".join([*lines, ""])


def _mermaid(text: str) -> str:
    return _plain(text).translate(_MERMAID_ESCAPES)


# ---- SVG -----------------------------------------------------------------------------------------------------------

_SVG: Final = "http://www.w3.org/2000/svg"
_CHARACTER, _LINE, _PAD = 7.2, 16.0, 10.0
_GAP_X, _GAP_Y, _MARGIN = 34.0, 92.0, 24.0
_SMALL, _SMALL_CHARACTER = 12.0, 6.2
_LABEL_MAX: Final = 30
_ROW_MIN: Final = 8
_STYLE: Final = (
    "text{font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:12px}"
    "text{fill:#202124;text-anchor:middle}"
    "text.more{fill:#5f6368;font-size:11px}"
    "text.edge{font-size:10px;paint-order:stroke;stroke:#ffffff;stroke-width:4px}"
)


@dataclass(slots=True)
class _Box:
    """A node with its place, and the edges that come to it from above: their labels stand beside each other over it."""

    node: Node
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0
    arriving: list[Edge] = field(default_factory=list)

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def room(self) -> float:
        """How wide it is with its labels."""
        return max(self.width, sum(_label_width(edge) for edge in self.arriving))


def to_svg(graph: Graph) -> str:
    """Return the graph as a picture."""
    boxes = _laid_out(graph)
    width = max((box.middle + box.room / 2 for box in boxes.values()), default=200.0) + _MARGIN
    height = max((box.y + box.height for box in boxes.values()), default=40.0) + _MARGIN + _LINE
    root = ET.Element(
        "svg",
        {"xmlns": _SVG, "width": f"{width:.0f}", "height": f"{height:.0f}", "viewBox": f"0 0 {width:.0f} {height:.0f}"},
    )
    _add(root, "title", {}, graph.name)
    _add(root, "style", {}, _STYLE)
    marker = _add(
        _add(root, "defs", {}),
        "marker",
        {"id": "arrow", "viewBox": "0 0 8 8", "refX": "8", "refY": "4", "markerWidth": "7", "markerHeight": "7"}
        | {"orient": "auto"},
    )
    _add(marker, "path", {"d": "M0 0L8 4L0 8z", "fill": STROKE["ok"]})
    _add(root, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    for box in boxes.values():
        _draw_arriving(root, box, boxes)
    for number, edge in enumerate(edge for edge in graph.edges if edge.kind == "signal"):
        _draw_signal(root, edge, boxes[edge.source], boxes[edge.target], number)
    for box in boxes.values():
        _draw_box(root, box)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _laid_out(graph: Graph) -> dict[str, _Box]:
    """Give every node its place."""
    boxes = {node.id: _box(node) for node in graph.nodes}
    near: dict[str, list[str]] = {}
    for edge in graph.edges:
        if edge.kind != "signal":
            near.setdefault(edge.source, []).append(edge.target)
            near.setdefault(edge.target, []).append(edge.source)
            lower = max((boxes[edge.source], boxes[edge.target]), key=lambda box: ROWS.index(box.node.kind))
            lower.arriving.append(edge)
    placed: set[str] = set()
    y = _MARGIN
    for kind in ROWS:
        row = [box for box in boxes.values() if box.node.kind == kind]
        row.sort(key=lambda box: _wished(box, boxes, near, placed))
        length = max(_ROW_MIN, math.ceil(math.sqrt(2 * len(row))))
        for start in range(0, len(row), length):
            line = row[start : start + length]
            _place(line, y, [_wished(box, boxes, near, placed) for box in line])
            y += max(box.height for box in line) + _GAP_Y
        placed |= {box.node.id for box in row}
    left = min((box.middle - box.room / 2 for box in boxes.values()), default=0.0)
    for box in boxes.values():
        box.x += _MARGIN - left
    return boxes


def _box(node: Node) -> _Box:
    longest = max(len(_short(text)) for text in (node.label, *node.lines))
    return _Box(node, max(90.0, longest * _CHARACTER + 2 * _PAD), _LINE * (1 + len(node.lines)) + _PAD)


def _wished(box: _Box, boxes: Mapping[str, _Box], near: Mapping[str, Sequence[str]], placed: set[str]) -> float:
    """Where a node would stand: below the middle of what it is joined to."""
    above = [boxes[name].middle for name in near.get(box.node.id, ()) if name in placed]
    return sum(above) / len(above) if above else 0.0


def _place(line: Sequence[_Box], y: float, wished: Sequence[float]) -> None:
    """Put boxes beside each other, together below the middle of where they would stand."""
    total = sum(box.room for box in line) + _GAP_X * (len(line) - 1)
    x = sum(wished) / len(wished) - total / 2
    for box in line:
        box.x, box.y = x + (box.room - box.width) / 2, y
        x += box.room + _GAP_X


def _draw_box(root: ET.Element, box: _Box) -> None:
    node = box.node
    group = _add(root, "g", {"class": f"node {node.kind} {node.state}"})
    _add(group, "title", {}, "\n".join((node.label, *node.lines)))
    shape = {"x": _n(box.x), "y": _n(box.y), "width": _n(box.width), "height": _n(box.height)}
    look = {"rx": "14" if node.kind in {"switch", "bus"} else "4", "fill": FILL[node.kind]}
    _add(group, "rect", {**shape, **look, "stroke": STROKE[node.state], "stroke-width": "1.5"})
    for number, text in enumerate((node.label, *node.lines)):
        place = {"x": _n(box.middle), "y": _n(box.y + _PAD / 2 + _LINE * (number + 0.78))}
        _add(group, "text", place if number == 0 else {**place, "class": "more"}, _short(text))


def _draw_arriving(root: ET.Element, box: _Box, boxes: Mapping[str, _Box]) -> None:
    """Draw the edges that come to a box from above, from left to right, each with its label above its end."""
    ends = [(boxes[edge.source if edge.target == box.node.id else edge.target], edge) for edge in box.arriving]
    ends.sort(key=lambda end: end[0].middle)
    x = box.middle - sum(_label_width(edge) for _, edge in ends) / 2
    for number, (upper, edge) in enumerate(ends, 1):
        width = _label_width(edge)
        group = _edge_group(root, edge, upper, box)
        look = {"stroke": STROKE[edge.state], "stroke-width": "2" if edge.state == "fault" else "1.3"}
        dashes = {"stroke-dasharray": "5 4"} if edge.state == "down" else {}
        end = box.x + box.width * number / (len(ends) + 1)
        path = _curve(upper.middle, upper.y + upper.height, end, box.y)
        _add(group, "path", {"d": path, "fill": "none", **look, **dashes})
        _write(group, edge, x + width / 2, box.y - 8 - _SMALL * len(edge.label))
        x += width


def _draw_signal(root: ET.Element, edge: Edge, start: _Box, end: _Box, number: int) -> None:
    """Draw an arrow; between neighbours of one row it hangs below them."""
    group = _edge_group(root, edge, start, end)
    look = {"fill": "none", "stroke": STROKE[edge.state], "stroke-width": "1.2", "stroke-dasharray": "2 3"}
    is_beside, is_down = start.y == end.y, start.y < end.y
    y1 = start.y + start.height if is_beside or is_down else start.y
    y2 = end.y if is_down else end.y + end.height
    shift = 10.0 * (number % 3 - 1)
    x1, x2 = start.middle + shift, end.middle + shift
    sag = 40.0 + 14.0 * (number % 3)
    path = (
        f"M{_n(x1)} {_n(y1)}C{_n(x1)} {_n(y1 + sag)} {_n(x2)} {_n(y2 + sag)} {_n(x2)} {_n(y2)}"
        if is_beside
        else _curve(x1, y1, x2, y2)
    )
    _add(group, "path", {"d": path, **look, "marker-end": "url(#arrow)"})
    _write(group, edge, (x1 + x2) / 2, (y1 + y2) / 2 + (sag * 0.75 if is_beside else 0.0) - _SMALL)


def _edge_group(root: ET.Element, edge: Edge, start: _Box, end: _Box) -> ET.Element:
    group = _add(root, "g", {"class": f"edge {edge.kind} {edge.state}"})
    _add(group, "title", {}, "\n".join((f"{start.node.label} to {end.node.label}", *edge.label)))
    return group


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    bend = (y2 - y1) * 0.45
    return f"M{_n(x1)} {_n(y1)}C{_n(x1)} {_n(y1 + bend)} {_n(x2)} {_n(y2 - bend)} {_n(x2)} {_n(y2)}"


def _write(group: ET.Element, edge: Edge, x: float, y: float) -> None:
    for index, text in enumerate(edge.label, 1):
        _add(group, "text", {"x": _n(x), "y": _n(y + _SMALL * index), "class": "edge"}, _short(text))


def _label_width(edge: Edge) -> float:
    return max((len(_short(text)) for text in edge.label), default=0) * _SMALL_CHARACTER + _PAD


def _add(parent: ET.Element, tag: str, attributes: dict[str, str], text: str = "") -> ET.Element:
    made = ET.SubElement(parent, tag, {name: _plain(value) for name, value in attributes.items()})
    if text:
        made.text = _plain(text)
    return made


def _n(value: float) -> str:
    return f"{value:.1f}"


def _short(text: str) -> str:
    return text if len(text) <= _LABEL_MAX else f"{text[: _LABEL_MAX - 1]}…"


# ---- all of them ---------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """A text without what no picture shows and XML forbids: control characters, lone surrogates."""
    return "".join(_characters(text))


def _characters(text: str) -> Iterator[str]:
    for character in text:
        yield character if character == "\n" or character.isprintable() else "?"


LANGUAGES: Final[Mapping[str, Callable[[Graph], str]]] = MappingProxyType(
    {"dot": to_dot, "mermaid": to_mermaid, "svg": to_svg}
)
