"""The error vocabulary: fields, pickles, and the table of refusals."""

import errno
import pickle

import pytest

from vbnet import errors
from vbnet.errors import (
    REFUSALS,
    BusyError,
    DeadlineError,
    InternalError,
    PeerFault,
    ResourceError,
    UsageError,
    VbnetError,
    error_from_refusal,
    refusal_name,
)


@pytest.mark.parametrize("cls", REFUSALS.values(), ids=lambda cls: cls.__name__)
def test_every_error_survives_a_pickle_with_its_fields(cls: type[VbnetError]) -> None:
    """An error means the same in another process."""
    error = cls("it broke", limit=3)

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes

    assert (cls, "it broke", {"limit": 3}) == (type(again), str(again), again.fields)


@pytest.mark.parametrize(("name", "cls"), REFUSALS.items())
def test_refusals_travel_both_ways(name: str, cls: type[VbnetError]) -> None:
    """A class becomes its errno name, and the name becomes the class."""
    there = refusal_name(cls("no"))
    back = error_from_refusal(name, "no", {"limit": 3})

    assert name == there
    assert (cls, 3) == (type(back), back.fields["limit"])


def test_every_refusal_is_an_errno_name() -> None:
    """Operators can look the names up in their manual pages."""
    unknown = [name for name in REFUSALS if not hasattr(errno, name)]

    assert unknown == []


def test_every_class_is_exported_and_documented() -> None:
    """Whatever derives from the root is public and says what it means."""
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, VbnetError)]

    assert [cls for cls in classes if cls.__name__ not in errors.__all__ or not cls.__doc__] == []


def test_a_subclass_travels_as_its_nearest_ancestor() -> None:
    """A device author's own error needs no entry in the table."""

    class CrowdedError(BusyError):
        """Too many."""

    assert refusal_name(CrowdedError("full")) == "EBUSY"


def test_a_foreign_exception_travels_as_our_bug() -> None:
    """What is not of the vocabulary is nobody's fault but ours."""
    assert refusal_name(KeyError("x")) == "EIO"
    assert isinstance(error_from_refusal("EIO", "x"), InternalError)


def test_an_unknown_code_keeps_its_name() -> None:
    """A newer host's code is not lost on an older guest."""
    error = error_from_refusal("ENEWS", "what", None)

    assert (VbnetError, "ENEWS") == (type(error), error.fields["code"])


def test_without_message_the_fields_speak() -> None:
    """An error is readable even when nobody wrote a sentence."""
    error = PeerFault(rule="next < size", got=900, limit=256)

    assert str(error) == "the other side broke a rule: rule='next < size', got=900, limit=256"


def test_errors_are_also_what_python_programs_catch() -> None:
    """Standard handlers see them."""
    assert isinstance(UsageError("x"), ValueError)
    assert isinstance(DeadlineError("x"), TimeoutError)
    assert ResourceError("x", errno=errno.EMFILE).errno == errno.EMFILE
