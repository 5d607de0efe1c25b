"""`vbnet doctor`: every check answers, and everything that is not ok says what helps."""

import resource
from collections.abc import Callable

import pytest

from vbnet.cli import doctor
from vbnet.cli.doctor import CHECKS, Finding


@pytest.mark.usefixtures("run_dir")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
def test_a_check_answers_with_a_fix_unless_ok(check: Callable[[], Finding]) -> None:
    """Whatever this machine has, there is a result, a detail, and help where it is needed."""
    finding = check()

    assert finding.result in {"ok", "limited", "missing"}
    assert "" != finding.detail
    assert ("" == finding.fix) == ("ok" == finding.result)


def test_too_few_descriptors_are_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand guests need more than the usual 1024."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))

    assert "limited" == doctor.check_descriptors().result
