"""Draws docs/images/overview.svg: who runs where, what crosses between processes, and the way of one frame.

The picture is committed, and a test fails when it is not what this script draws, so edit here and run `make docs`.
It is plain SVG on a light ground, so that it looks the same on light and dark pages.
"""

from pathlib import Path
from xml.sax.saxutils import escape

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "overview.svg"

WIDTH, HEIGHT = 1000, 590
INK, MUTED, PAPER = "#1f2933", "#52606d", "#fbfcfd"
HOST, GUEST, MEMORY, OUTSIDE = "#dbe9f6", "#e3f1e1", "#fdf0d5", "#eceff2"
FRAME, BUS, BELL = "#c2410c", "#1d4ed8", "#7c3aed"


def box(x: int, y: int, width: int, height: int, fill: str, *, is_process: bool = False) -> str:
    """Return a rounded box; a process has the heavier outline, because its border is a border of trust."""
    stroke = 2.2 if is_process else 1.0
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" '
        f'stroke="{INK if is_process else MUTED}" stroke-width="{stroke}"/>'
    )


def text(
    x: int, y: int, words: str, *, size: int = 14, colour: str = INK, weight: int = 400, at: str = "middle"
) -> str:
    """Return one line of text, anchored at its middle unless ``at`` says start or end."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" font-weight="{weight}" '
        f'text-anchor="{at}">{escape(words)}</text>'
    )


def line(points: str, colour: str, *, width: float = 2.0, dash: str = "", both: bool = False) -> str:
    """Return a path with an arrow head at its end, and at its beginning too if ``both``."""
    name = {FRAME: "frame", BUS: "bus", BELL: "bell"}[colour]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    start = f' marker-start="url(#{name})"' if both else ""
    return (
        f'<path d="{points}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes} '
        f'marker-end="url(#{name})"{start}/>'
    )


def heads() -> list[str]:
    """Return the definitions of the arrow heads, one for each colour of line."""
    return [
        f'<marker id="{name}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="{size}" markerHeight="{size}" '
        f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
        for name, colour, size in (("frame", FRAME, 4), ("bus", BUS, 6), ("bell", BELL, 7))
    ]


def host() -> list[str]:
    """Return the host node with its two parts, and what is outside: the operator and the kernel."""
    return [
        box(230, 30, 540, 190, HOST, is_process=True),
        text(500, 56, "host node", size=17, weight=700),
        box(252, 74, 206, 126, PAPER),
        text(355, 98, "bus manager", weight=700),
        text(355, 121, "buses · devices · sessions", size=13, colour=MUTED),
        text(355, 141, "checks every request", size=13, colour=MUTED),
        text(355, 161, "frees what the dead leave", size=13, colour=MUTED),
        text(355, 187, "Python, asyncio", size=12, colour=MUTED),
        box(478, 74, 270, 126, PAPER),
        text(613, 98, "native worker threads", weight=700),
        box(500, 110, 226, 46, HOST),
        text(613, 138, "switch", size=15, weight=700),
        box(20, 74, 150, 126, OUTSIDE, is_process=True),
        text(95, 110, "operator", weight=700),
        text(95, 134, "vbnet command", size=13, colour=MUTED),
        text(95, 154, "Python API", size=13, colour=MUTED),
        text(95, 174, "event subscribers", size=13, colour=MUTED),
        box(830, 74, 150, 126, OUTSIDE, is_process=True),
        text(905, 110, "Linux kernel", weight=700),
        text(905, 134, "TAP uplinks", size=13, colour=MUTED),
        text(905, 154, "network", size=13, colour=MUTED),
        text(905, 174, "namespaces", size=13, colour=MUTED),
        line("M174 137H248", BUS, dash="7 4", both=True),
        line("M730 133H826", FRAME, width=3.5, both=True),
    ]


def guest(x: int, name: str, kind: str) -> list[str]:
    """Return one guest node with its RAM: the rings and the buffers that the host maps."""
    return [
        box(x, 340, 360, 180, GUEST, is_process=True),
        text(x + 20, 505, name, size=17, weight=700, at="start"),
        text(x + 340, 505, kind, size=12, colour=MUTED, at="end"),
        box(x + 20, 362, 320, 112, MEMORY),
        text(x + 180, 464, "guest RAM: one sealed memfd", size=12, colour=MUTED),
        *(
            piece
            for offset, width, label in ((32, 76, "TX ring"), (116, 76, "RX ring"), (200, 128, "buffers"))
            for piece in (
                box(x + offset, 376, width, 66, PAPER),
                text(x + offset + width // 2, 414, label, size=13),
            )
        ),
    ]


def crossings() -> list[str]:
    """Return what crosses between host and guests: management, doorbells, and one frame."""
    return [
        # Management: from the bus manager to both guests.
        line("M290 204V270H120V336", BUS, dash="7 4", both=True),
        line("M330 204V300H590V336", BUS, dash="7 4", both=True),
        # Doorbells: two eventfds a ring.
        line("M520 204V285H210V336", BELL, width=1.3, dash="2 3", both=True),
        line("M550 204V250H690V336", BELL, width=1.3, dash="2 3", both=True),
        # One frame: out of the sender's buffer, into the buffer that the receiver posted.
        line("M344 372V238H590V160", FRAME, width=4.5),
        line("M640 160V238H824V372", FRAME, width=4.5),
        text(836, 288, "one copy,", size=13, colour=FRAME, weight=700, at="start"),
        text(836, 306, "no system call", size=13, colour=FRAME, weight=700, at="start"),
    ]


def legend() -> list[str]:
    """Return what the three kinds of line mean."""
    return [
        line("M40 556H92", FRAME, width=4.5),
        text(104, 561, "frames: shared memory", size=13, at="start"),
        line("M330 556H382", BUS, dash="7 4", both=True),
        text(394, 561, "management: ZeroMQ, never a frame", size=13, at="start"),
        line("M690 556H742", BELL, width=1.3, dash="2 3", both=True),
        text(754, 561, "doorbells: only for sleepers", size=13, at="start"),
    ]


def picture() -> str:
    """Return the whole picture as SVG."""
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" role="img" aria-labelledby="title">'
        ),
        '<title id="title">A host node joins guest nodes: management over ZeroMQ, frames through shared memory</title>',
        "<defs>",
        *heads(),
        "</defs>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="{PAPER}"/>',
        *host(),
        *guest(60, "guest node A", "one guest, or many packed"),
        *guest(540, "guest node B", "python · stack · netns · traffic"),
        *crossings(),
        *legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(picture())
