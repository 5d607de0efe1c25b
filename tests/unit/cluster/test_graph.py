"""Topologies as graphs, and graphs as DOT, Mermaid and SVG: complete, escaped, bounded."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree as ET

import pytest

from vbnet.cluster.draw import LANGUAGES, to_dot, to_mermaid, to_svg
from vbnet.cluster.graph import Card, Device, Edge, Facts, Graph, Guest, Node, Rates, Signal, facts_of_plan, make_graph
from vbnet.cluster.plan import make_plan
from vbnet.cluster.topology import parse_topology

LAB = """
name: t
switches: {lan: , wan: }
guests:
  cell: {kind: stack, count: 1000, packed: true, nics: [{switch: lan, ip: 10.1.0.1/16}]}
  web: {kind: python, run: "vbnet.cluster.demo_guest:main", nics: [{switch: lan, ip: 10.2.0.1/16}, {switch: wan}]}
  db: {kind: python, run: "vbnet.cluster.demo_guest:main", nics: [{switch: wan}]}
uplinks: [{switch: lan, tap: vbt0, ip: 10.9.0.1/16}]
devices: {clock: {type: timer, guests: [web, db]}}
"""
NASTY = "a\"b<c>&d'\\e|#;]})%`\n\x1b\ud800ж"
SVG = "{http://www.w3.org/2000/svg}"


def of_lab(text: str = LAB, *, show_all: bool = False) -> Graph:
    """The graph of a lab file."""
    return make_graph(facts_of_plan(make_plan(parse_topology(text, "lab.yaml", {}))), show_all=show_all)


def joined(graph: Graph) -> set[tuple[str, str, str]]:
    """Every edge as its ends and kind."""
    return {(edge.source, edge.target, edge.kind) for edge in graph.edges}


def pair(**of_card: object) -> Facts:
    """A guest on a switch, with a card that is as the test says."""
    facts = Facts("t", ["lan"], ["web"], [Guest("web", "web", "python", "ready")])
    facts.cards = [Card("web.eth0", "lan", "web", **of_card)]  # type: ignore[arg-type]
    return facts


def test_a_lab_file_has_its_switches_guests_devices_and_uplinks() -> None:
    """Cards are edges; a thousand packed guests are one node."""
    graph = of_lab()

    labels = {node.id: node.label for node in graph.nodes}
    assert {
        "uplink:vbt0": "vbt0",
        "switch:lan": "lan",
        "switch:wan": "wan",
        "guest:cell-…": "cell-… ×1000",  # noqa: RUF001 -- times
        "guest:web": "web",
        "guest:db": "db",
        "device:clock": "clock",
    } == labels
    assert {
        ("switch:lan", "uplink:vbt0", "link"),
        ("switch:lan", "guest:cell-…", "link"),
        ("switch:lan", "guest:web", "link"),
        ("switch:wan", "guest:web", "link"),
        ("switch:wan", "guest:db", "link"),
        ("guest:web", "device:clock", "plug"),
        ("guest:db", "device:clock", "plug"),
    } == joined(graph)
    assert ("eth0 10.2.0.1/16",) in {edge.label for edge in graph.edges}


def test_with_all_each_guest_is_a_node() -> None:
    """Nothing is summed up."""
    graph = of_lab(show_all=True)

    assert 1002 == sum(node.kind == "guest" for node in graph.nodes)
    assert {f"guest:cell-{number}" for number in range(1000)} <= {edge.target for edge in graph.edges}


def test_guests_of_one_name_on_different_switches_are_not_summed_up_together() -> None:
    """What differs in more than its number stays apart."""
    names = [f"g-{number}" for number in range(40)]
    facts = Facts("t", ["a", "b"], names, [Guest(name, name) for name in names])
    facts.cards = [Card(f"{name}.eth0", "ab"[number % 2], name) for number, name in enumerate(names)]

    graph = make_graph(facts)

    guests = [node.label for node in graph.nodes if node.kind == "guest"]
    assert ["g-… ×20", "g-…… ×20"] == guests  # noqa: RUF001 -- times
    assert 2 == len(graph.edges)


def test_a_shared_bus_is_a_node_between_its_guests_and_what_is_on_it() -> None:
    """So is one without guests; a bus of one guest is the guest."""
    facts = Facts("t", ["lan"], ["both", "none", "own"])
    facts.guests = [Guest("a", "both"), Guest("b", "both"), Guest("c", "own")]
    facts.cards = [Card("nic", "lan", "both")]
    facts.devices = [Device("d", "state", ("both", "own", "none"))]

    graph = make_graph(facts)

    assert {"bus:both", "bus:none"} == {node.id for node in graph.nodes if node.kind == "bus"}
    assert {
        ("switch:lan", "bus:both", "link"),
        ("bus:both", "guest:a", "member"),
        ("bus:both", "guest:b", "member"),
        ("bus:both", "device:d", "plug"),
        ("guest:c", "device:d", "plug"),
        ("bus:none", "device:d", "plug"),
    } == joined(graph)


@pytest.mark.parametrize(
    ("card", "state", "label"),
    [
        ({"rates": Rates(20100, 1.29e6)}, "ok", ("eth0", "20.1 kpkt/s 1.29 MB/s")),
        ({"rates": Rates()}, "ok", ("eth0", "0 pkt/s 0 B/s")),
        ({"is_up": False}, "down", ("eth0", "down")),
        ({"faults": ("transmit: zero_length",)}, "fault", ("eth0", "quarantined", "transmit: zero_length")),
    ],
)
def test_an_edge_says_what_passes_and_what_is_wrong(
    card: dict[str, object], state: str, label: tuple[str, ...]
) -> None:
    """Rates, a link that is down, a queue that was quarantined and why."""
    [edge] = make_graph(pair(**card)).edges

    assert (state, label) == (edge.state, edge.label)


def test_edges_that_are_summed_up_add_their_rates_and_count_what_is_wrong() -> None:
    """One bad queue among many is seen; one that is down does not make the others look so."""
    names = [f"g-{number}" for number in range(20)]
    facts = Facts("t", ["lan"], names, [Guest(name, name, "stack", "ready") for name in names])
    facts.cards = [Card(f"{name}.eth0", "lan", name, rates=Rates(10, 1000), is_up=name != "g-3") for name in names]

    [edge] = make_graph(facts).edges
    facts.cards[5] = Card("g-5.eth0", "lan", "g-5", faults=("receive: too_long",))
    [faulty] = make_graph(facts).edges

    assert ("ok", ("20 links", "1 down", "200 pkt/s 20 kB/s")) == (edge.state, edge.label)
    assert ("fault", ("20 links", "1 down", "1 quarantined")) == (faulty.state, faulty.label[:3])


def test_a_guest_that_is_not_well_is_marked_also_in_a_crowd() -> None:
    """With how many are how."""
    names = [f"g-{number}" for number in range(20)]
    facts = Facts(
        "t", [], names, [Guest(name, name, "stack", "wedged" if name == "g-9" else "ready") for name in names]
    )

    [node] = make_graph(facts).nodes

    assert ("fault", ("stack", "19 ready, 1 wedged")) == (node.state, node.lines)


def test_signals_lead_from_whoever_may_raise_them() -> None:
    """A guest with a grant, a device, or operators only; one that leads nowhere that is drawn is left out."""
    facts = Facts("t", [], ["a", "b"], [Guest("a", "a"), Guest("b", "b")])
    facts.devices = [Device("clock", "timer", ("a",))]
    facts.signals = [
        Signal("a/tick", "a", 5, raisers=("b",)),
        Signal("clock/0", "a", 3, device="clock"),
        Signal("alarm", "b", 7, is_blocked=True),
        Signal("gone", "nobody", 1, raisers=("a",)),
    ]

    graph = make_graph(facts)

    assert [
        ("guest:b", "guest:a", ("a/tick p5",), "ok"),
        ("device:clock", "guest:a", ("clock/0 p3",), "ok"),
        ("operator:", "guest:b", ("alarm p7",), "fault"),
    ] == [(edge.source, edge.target, edge.label, edge.state) for edge in graph.edges if edge.kind == "signal"]


# ---- the languages -------------------------------------------------------------------------------------------------


def nasty() -> Graph:
    """A graph of names that try to break out of every language."""
    return Graph(
        NASTY,
        (Node(f"switch:{NASTY}", "switch", NASTY), Node("guest:g", "guest", "g", (NASTY,), "fault")),
        (Edge(f"switch:{NASTY}", "guest:g", "link", (NASTY,), "down"),),
    )


def dot_strings(text: str) -> list[str]:
    """The quoted strings of DOT, unescaped by its rules; what is left must be plain syntax."""
    pattern = r'"((?:[^"\\\n]|\\.)*)"'
    rest = re.sub(pattern, "S", text)
    assert re.fullmatch(r"[\w\s{}\[\];=,#.\-]*", rest), rest
    return [re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), found) for found in re.findall(pattern, text)]


def test_names_cannot_break_out_of_dot() -> None:
    """Every string is whole, and says what it should."""
    strings = dot_strings(to_dot(nasty()))

    shown = NASTY.replace("\x1b", "?").replace("\ud800", "?")
    assert {shown, f"switch:{shown}", f"g\n{shown}"} <= set(strings)


def test_names_cannot_break_out_of_mermaid() -> None:
    """Nothing in a label but letters, spaces, escapes and line breaks."""
    lines = to_mermaid(nasty()).splitlines()

    labels = [label for line in lines for label in re.findall(r'"([^"]*)"', line)]
    assert 3 == len(labels)
    assert all(re.fullmatch(r"(?:[\w?']|#[0-9]+;|<br/>)*", label) for label in labels), labels
    unescaped = re.sub(r"#([0-9]+);", lambda found: chr(int(found[1])), labels[0].replace("<br/>", "\n"))
    assert NASTY.replace("\x1b", "?").replace("\ud800", "?") == unescaped


def test_names_cannot_break_out_of_svg() -> None:
    """It is well-formed, and the text is what the name was."""
    root = ET.fromstring(to_svg(nasty()))  # noqa: S314 -- made here

    titles = [title.text for title in root.iter(f"{SVG}title")]
    shown = NASTY.replace("\x1b", "?").replace("\ud800", "?")
    assert [shown, f"{shown} to g\n{shown}", shown, f"g\n{shown}"] == titles


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_and_edge_is_drawn_in_every_language(language: str) -> None:
    """As many as there are, for a thousand guests too."""
    graph = of_lab(show_all=True)

    drawn = LANGUAGES[language](graph)

    if language == "svg":
        groups = [group.get("class", "").split()[0] for group in ET.fromstring(drawn).iter(f"{SVG}g")]  # noqa: S314
        counted = groups.count("node"), groups.count("edge")
    elif language == "dot":
        counted = drawn.count("fillcolor="), drawn.count(" -- ")
    else:
        counted = drawn.count(":::"), drawn.count(" ---")
    assert (len(graph.nodes), len(graph.edges)) == counted


def boxes(drawn: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of every box of a picture."""
    found = []
    for group in ET.fromstring(drawn).iter(f"{SVG}g"):  # noqa: S314 -- made here
        rect = group.find(f"{SVG}rect")
        if rect is not None:
            x, y, width, height = (float(rect.get(name, "nan")) for name in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
    return found


@pytest.mark.parametrize("show_all", [False, True])
def test_boxes_of_a_picture_are_within_it_and_apart(show_all: bool) -> None:
    """Nothing covers anything, and a thousand guests do not make a picture a thousand guests wide."""
    drawn = to_svg(of_lab(show_all=show_all))
    root = ET.fromstring(drawn)  # noqa: S314 -- made here
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))

    placed = sorted(boxes(drawn), key=lambda box: (box[1], box[0]))

    assert all(0 <= x and 0 <= y and right <= width and bottom <= height for x, y, right, bottom in placed)
    assert all(after[0] >= before[2] or after[1] >= before[3] for before, after in itertools.pairwise(placed))
    assert width < 20_000


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_node_without_anything_is_a_drawing_too(language: str) -> None:
    """An empty host node is no error."""
    assert LANGUAGES[language](make_graph(Facts("empty")))
