"""The wheel is whole: installed into an empty environment, away from the checkout, every module imports.

The flat layout puts the checkout on the path of every other test, which would hide a file missing from the wheel.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.meta import tree

IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import vbnet
home = pathlib.Path(vbnet.__file__).resolve()
assert home.is_relative_to(sys.prefix), home
names = [found.name for found in pkgutil.walk_packages(vbnet.__path__, "vbnet.")]
for name in names:
    # Programs do what they are for when imported; the hook for pytest is imported by those who have pytest, the
    # server of `vbnet top` by those who have the extra `web`.
    if not name.endswith(("__main__", "pytest_hooks", "top.web")):
        importlib.import_module(name)
assert "vbnet._native" in names, names
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel once; the Rust part comes from the build that the checkout already has, if it has one."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [str(Path(sys.executable).parent / "maturin"), "build", "--profile", "fast", "--out", str(folder)]
    subprocess.run(command, cwd=tree.ROOT, check=True, capture_output=True)
    [found] = folder.glob("*.whl")
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    """Modules, stubs, schemas: whatever git has under vbnet/ is in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())

    missing = [tree.name(path) for path in tree.under("vbnet", suffix="") if tree.name(path) not in packed]

    assert [] == missing


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_module_imports_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """An environment with the wheel and what it declares, and nothing else, can import all of vbnet."""
    home = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    subprocess.run([home / "bin" / "python", "-m", "pip", "install", "--quiet", str(wheel)], check=True)

    outcome = subprocess.run(
        [home / "bin" / "python", "-I", "-c", IMPORT_ALL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "" == outcome.stderr
    assert 0 == outcome.returncode
