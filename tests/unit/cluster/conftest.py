"""Fixtures of this folder."""

from vbnet.testing.pytest_hooks import pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]
