"""A hook for conftest.py: import ``pytest_pyfunc_call`` there, and ``async def`` tests run to their end."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

__all__ = ["pytest_pyfunc_call"]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> bool | None:  # noqa: ANN401 - pytest's Function
    """Run a coroutine function on a loop of its own; leave every other test to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
