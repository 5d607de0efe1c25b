"""Finding labs and guests by name, for the verbs that take one; and completing those names in a shell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from vbnet.cli.completion import beginning_so
from vbnet.cluster.process import Identity, is_alive
from vbnet.cluster.state import GuestState, LabState, choose_lab, lab_folders, read_state
from vbnet.errors import NotFoundError, PeerGone, VbnetError, did_you_mean


def complete_lab(incomplete: str) -> list[str]:
    """Return the names of labs that begin so."""
    return beginning_so(lambda: [folder.name for folder in lab_folders()], incomplete)


def complete_guest(incomplete: str) -> list[str]:
    """Return the names of guests of all labs that begin so."""

    def guests() -> Iterator[str]:
        for folder in lab_folders():
            with suppress(VbnetError):
                yield from read_state(folder).guests

    return beginning_so(lambda: list(guests()), incomplete)


LabArgument = Annotated[
    str | None,
    typer.Argument(
        help="Name of the lab; not needed when there is one.", autocompletion=complete_lab, show_default=False
    ),
]
LabOption = Annotated[
    str | None,
    typer.Option(
        "--lab",
        "-l",
        envvar="VBNET_LAB",
        help="Name of the lab; not needed when there is one.",
        autocompletion=complete_lab,
    ),
]


def find_guest(lab: str | None, name: str) -> tuple[Path, LabState, GuestState]:
    """Return a guest's lab folder, lab and state.

    Raises:
        NotFoundError: no such lab or guest.
    """
    folder = choose_lab(lab)
    state = read_state(folder)
    guest = state.guests.get(name)
    if guest is None:
        known = did_you_mean(name, state.guests, otherwise="`vbnet ps` lists its guests")
        raise NotFoundError(f"lab `{state.lab}` has no guest `{name}`; {known}", guest=name)
    return folder, state, guest


def living_process(state: LabState, guest: GuestState) -> Identity:
    """Return the process of a guest.

    Raises:
        PeerGone: it has ended.
    """
    identity = state.processes[guest.process].identity
    if identity is None or not is_alive(identity):
        raise PeerGone(
            f"guest `{guest.name}` has ended ({guest.detail or guest.state}); `vbnet logs {guest.name}` says more"
        )
    return identity
