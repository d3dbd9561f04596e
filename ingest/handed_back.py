"""One error for all the events that a Producer hands back. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from thermocline.errors import OutcomeUnknown, PartialAppend, ThermoclineError
from thermocline.event import Event, Receipt

Failure = tuple[Sequence[Event], ThermoclineError]
"""Events, and why they are not stored, or with OutcomeUnknown may not be."""


def handed_back(failures: Sequence[Failure]) -> PartialAppend:
    """The error to raise. Its `cause` is the first failure's; one that can be retried goes first, with the rest of them after."""
    unsure = [failure for failure in failures if isinstance(failure[1], OutcomeUnknown)]
    sure = [failure for failure in failures if not isinstance(failure[1], OutcomeUnknown)]
    rest = [event for events, _ in (*unsure, *sure) for event in events]
    cause = (*unsure, *sure)[0][1]
    if unsure and sure:
        cause = _with_others(unsure[0], sure)
    if not rest:
        return _partial(str(cause), [], [], cause)
    message = f"{len(rest):,} events given to this Producer were not stored, or may not have been: {cause}"
    return _partial(message, [None] * len(rest), rest, cause)


def _with_others(unsure: Failure, sure: Sequence[Failure]) -> OutcomeUnknown:
    """As the unsure failure, with a retry that then raises for the others as append_many would."""
    unknown = unsure[1]
    assert isinstance(unknown, OutcomeUnknown), "only an unknown outcome can be retried"

    def retry() -> list[Receipt]:
        receipts = unknown.retry()
        others = [event for events, _ in sure for event in events]
        raise _partial(str(sure[0][1]), [*receipts, *[None] * len(others)], others, sure[0][1]) from sure[0][1]

    def look() -> bool:
        unknown.was_stored()
        return False

    both = OutcomeUnknown(str(unknown), retry=retry, look=look)
    both.__cause__ = unknown.__cause__
    return both


def _partial(message: str, receipts: list[Receipt | None], rest: list[Event], cause: ThermoclineError) -> PartialAppend:
    indices = [index for index, receipt in enumerate(receipts) if receipt is None]
    error = PartialAppend(message, receipts=receipts, rest=rest, rest_indices=indices, cause=cause)
    error.__cause__ = cause
    return error
