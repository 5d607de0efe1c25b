"""The command line: one module a verb or noun, loaded when it is used.

A new verb is one new module here with an ``app`` (a Typer application) and one line in ``registry.py``.
"""
