"""The command line's manners: fast, plain when piped, one message a failure, the documented exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import vbnet_program
from vbnet import errors
from vbnet.cli import failure, output
from vbnet.cli.main import main
from vbnet.cli.output import Format
from vbnet.cli.registry import ENTRIES


def imported_by(arguments: list[str]) -> set[str]:
    """Return the modules that are loaded once ``vbnet`` has run with these arguments."""
    program = (
        "import sys, json\nfrom vbnet.cli.main import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(finished.stderr.splitlines()[-1]))


def test_version_loads_nothing_heavy() -> None:
    """Asking for the version costs a bare Python and the package's metadata."""
    loaded = imported_by(["--version"])

    assert set() == loaded & {"typer", "rich", "zmq", "msgspec", "yaml", "asyncio", "vbnet.errors", "vbnet._native"}


def test_help_loads_no_verb() -> None:
    """The list of verbs is a table, not an import of everything."""
    loaded = imported_by(["--help"])

    verbs = {f"vbnet.cli.{entry.module}" for entry in ENTRIES.values()}
    assert set() == loaded & (verbs | {"rich.console", "zmq", "yaml", "vbnet._native"})


def test_a_verb_loads_no_other_verb() -> None:
    """``vbnet ps`` does not pay for ``vbnet bench``."""
    loaded = imported_by(["clean", "--help"])

    verbs = {f"vbnet.cli.{entry.module}" for entry in ENTRIES.values()} - {"vbnet.cli.clean"}
    assert set() == loaded & (verbs | {"rich.console", "zmq", "multiprocess", "pyroute2"})


@pytest.mark.parametrize("name", ENTRIES)
def test_every_verb_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Help is complete, plain text, and quick to read."""
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    said = capsys.readouterr().out

    assert 0 == end.value.code
    assert said.startswith(f"Usage: vbnet {name}")
    assert f"vbnet {name}" in said.partition("Examples:")[2]
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.UnsupportedError("x"), 2),
        (errors.NotFoundError("x"), 3),
        (errors.NotPermittedError("x"), 4),
        (errors.ResourceError("x"), 4),
        (errors.BusyError("x"), 5),
        (errors.ExistsError("x"), 5),
        (errors.DeadlineError("x"), 6),
        (errors.PeerGone("x"), 7),
        (errors.PeerFault("x"), 7),
        (errors.InternalError("x"), 70),
        (errors.VbnetError("x"), 1),
    ],
)
def test_each_kind_of_failure_has_its_documented_code(error: errors.VbnetError, code: int) -> None:
    """Scripts tell failures apart by code."""
    assert code == failure.exit_code(error)
    assert code in failure.EXIT_CODES


@pytest.mark.usefixtures("run_dir")
def test_a_failure_is_one_message_without_a_traceback() -> None:
    """What happened and what to do, on standard error."""
    finished = vbnet_program.run("down", "nothing", code=3)

    assert "vbnet: there is no lab `nothing`; no lab is up\n" == finished.stderr
    assert "" == finished.stdout


@pytest.mark.usefixtures("run_dir")
def test_debug_shows_where_it_failed() -> None:
    """Who reports a bug needs the traceback."""
    finished = vbnet_program.run("--debug", "down", "nothing", code=1)

    assert "Traceback" in finished.stderr


def test_an_unknown_verb_is_told() -> None:
    """A mistyped verb is wrong use."""
    assert "No such command 'pss'" in vbnet_program.run("pss", code=2).stderr


def test_problems_of_a_lab_file_are_lines_that_editors_open(tmp_path: Path) -> None:
    """``file:line: what; what to do`` stands at the beginning of the line."""
    lab = tmp_path / "lab.yaml"
    lab.write_text("name: t\nbogus: 1\n", encoding="utf-8")

    finished = vbnet_program.run("up", str(lab), code=2)

    assert finished.stderr.startswith(f"{lab}:2: unknown key `bogus`; ")


def test_validate_asks_whether_the_run_directory_may_be_used(tmp_path: Path) -> None:
    """Only when it is asked about this machine; one that is open to others would stop the lab."""
    lab, root = tmp_path / "lab.yaml", tmp_path / "run"
    lab.write_text("name: t\n", encoding="utf-8")
    root.mkdir()
    root.chmod(0o755)
    environment = {**os.environ, "VBNET_RUN_DIR": str(root)}

    vbnet_program.run("validate", str(lab), environment=environment)
    refused = vbnet_program.run("validate", str(lab), "--here", code=4, environment=environment)
    root.chmod(0o700)
    vbnet_program.run("validate", str(lab), "--here", environment=environment)

    assert "chmod 700" in refused.stderr


def test_validate_reports_problems_for_programs_too(tmp_path: Path) -> None:
    """``--format json`` has the same lines as fields."""
    lab = tmp_path / "lab.yaml"
    lab.write_text("name: t\nbogus: 1\n", encoding="utf-8")

    found = json.loads(vbnet_program.run("validate", str(lab), "--format", "json", code=2).stdout)

    assert [2] == [problem["line"] for problem in found[0]["problems"]]


def test_a_dry_run_starts_nothing(tmp_path: Path, run_dir: Path) -> None:
    """The plan is printed, and the run directory stays empty."""
    lab = tmp_path / "lab.yaml"
    lab.write_text("name: t\nswitches: {lan: }\n", encoding="utf-8")

    said = vbnet_program.run("up", str(lab), "--dry-run").stdout

    assert "switch.create name=lan ageing_s=300" in said
    assert [] == list(run_dir.iterdir())


def test_piped_tables_are_aligned_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Off a terminal there is no colour and no box, and empty values are a dash."""
    output.print_rows([{"name": "a", "items": [1, 2]}, {"name": "long", "items": []}], ("name", "items"), Format.table)

    assert "NAME  ITEMS\na     1 2\nlong  -\n" == capsys.readouterr().out


def test_json_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    """A table leaves out what a person does not need; JSON leaves out nothing."""
    output.print_rows([{"name": "a", "extra": None}], ("name",), Format.json)

    assert [{"name": "a", "extra": None}] == json.loads(capsys.readouterr().out)


def test_the_reader_of_our_output_may_leave() -> None:
    """``vbnet validate --schema | head -1`` ends quietly."""
    command = f"{sys.executable} -m vbnet.cli.main validate --schema | head -1"

    finished = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)

    assert ("{\n", "") == (finished.stdout, finished.stderr)


@pytest.mark.parametrize(
    "words",
    [
        *("metrics", "metrics --node x", "top --once", "capture x", "trace x", "events --last 1", "errors", "graph"),
        *("ps", "monitor", "clean", "logs", "down", "switch list"),
    ],
)
def test_a_run_directory_that_cannot_be_read_is_said_instead_of_being_empty(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has a lab running must not hear that there is none; one line, exit code 4."""
    path = tmp_path / "run"
    path.touch()
    monkeypatch.setenv("VBNET_RUN_DIR", str(path))

    with pytest.raises(SystemExit) as end:
        main(words.split())

    assert 4 == end.value.code
    said = f"vbnet: cannot read the run directory {path}: Not a directory; VBNET_RUN_DIR may name another\n"
    assert said == capsys.readouterr().err


def test_closed_run_directory_is_said_and_completes_nothing(tmp_path: Path) -> None:
    """Also where it is a folder that this user may not look into."""
    path = tmp_path / "run"
    path.mkdir(mode=0)
    powers = "-dac_override,-dac_read_search"
    powerless = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"] if os.geteuid() == 0 else []
    command = [*powerless, *vbnet_program.COMMAND]
    environment = {**os.environ, "VBNET_RUN_DIR": str(path)}
    asked = {"_VBNET_COMPLETE": "complete_bash", "COMP_WORDS": "vbnet metrics --node ", "COMP_CWORD": "3"}

    told = subprocess.run([*command, "ps"], env=environment, capture_output=True, text=True, check=False)
    completed = subprocess.run(command, env={**environment, **asked}, capture_output=True, text=True, check=False)

    assert (4, 1) == (told.returncode, len(told.stderr.splitlines()))
    assert f"cannot read the run directory {path}: Permission denied" in told.stderr
    assert ("", "") == (completed.stdout.strip(), completed.stderr)


def test_completion_knows_the_verbs() -> None:
    """What ``vbnet --install-completion`` installs asks this question."""
    program = "from vbnet.cli.main import main; main([])"
    environment = {"_VBNET_COMPLETE": "complete_bash", "COMP_WORDS": "vbnet va", "COMP_CWORD": "1"}

    finished = subprocess.run(
        ["env", *(f"{key}={value}" for key, value in environment.items()), sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "validate" in finished.stdout.split()
