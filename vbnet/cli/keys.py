"""`vbnet keys`: who may connect from other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vbnet.bus.keys import KeyStore
from vbnet.cli import output
from vbnet.cli.connection import default_keys
from vbnet.cli.output import Format, FormatOption

app = output.application(
    "Make, show and allow keys. A host node listens on tcp only with a key, and lets in only keys on its allow-list.",
    [
        ("vbnet keys make", "make this user's key pair"),
        ("vbnet keys show", "print the public key and who is allowed"),
        ("vbnet keys allow 'KEY' laptop", "let the holder of KEY in, under a name"),
    ],
    is_group=True,
)

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--keys", envvar="VBNET_KEYS", help="Folder of keys; ~/.config/vbnet/keys when left out.", show_default=False
    ),
]


@app.command()
def make(
    keys: FolderOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make a new pair; peers that know the old one are locked out.")
    ] = False,
    how: FormatOption = Format.table,
) -> None:
    """Make this user's key pair; prints the public key."""
    store = KeyStore(keys or default_keys())
    pair = store.make(replace=replace)
    output.print_done(pair.public, {"public": pair.public, "folder": str(store.path)}, how)


@app.command()
def show(keys: FolderOption = None, how: FormatOption = Format.table) -> None:
    """Print the public key, and who is allowed."""
    store = KeyStore(keys or default_keys())
    allowed = [{"name": name, "public": public} for public, name in store.allowed().items()]
    if how is Format.json:
        output.print_json({"public": store.load().public, "folder": str(store.path), "allowed": allowed})
        return
    output.say(store.load().public)
    output.print_rows(allowed, ("name", "public"), how, empty="nobody is allowed yet; `vbnet keys allow KEY NAME`")


@app.command()
def allow(
    public: Annotated[str, typer.Argument(help="The peer's public key (40 characters).", show_default=False)],
    name: Annotated[str, typer.Argument(help="A name for it.", show_default=False)],
    keys: FolderOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Let the holder of a key in, from now on."""
    KeyStore(keys or default_keys()).allow(public, name)
    output.print_done(f"{name} is allowed", {"name": name, "public": public}, how)


@app.command()
def forbid(
    who: Annotated[str, typer.Argument(help="Name or public key.", show_default=False)],
    keys: FolderOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Let a peer in no more; connections it has now last until it leaves."""
    KeyStore(keys or default_keys()).forbid(who)
    output.print_done(f"{who} is not allowed any more", {"name": who, "result": "forbidden"}, how)
