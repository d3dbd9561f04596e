"""Every error Thermocline raises, in one tree. The first line of each docstring is what went wrong in general;
the message of an instance names the object, the limit and the next thing to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thermocline.event import Event, Receipt


class ThermoclineError(Exception):
    """Something Thermocline can name went wrong."""


class InvalidEvent(ThermoclineError, ValueError):
    """An event breaks a rule of docs/formats.md; nothing of the call was stored."""

    def __init__(self, field: str, problem: str, *, index: int | None = None) -> None:
        self.field = field
        self.problem = problem
        self.index = index
        place = "" if index is None else f"event {index}: "
        super().__init__(f"{place}{field}: {problem}")


class Backpressure(ThermoclineError):
    """The store sheds load: nothing was stored, append again after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        self.problem = message
        super().__init__(f"{message}; retry after {retry_after_s:g} s")


class OutcomeUnknown(ThermoclineError):
    """The reply was lost: the events may be stored. `retry()` settles it, `was_stored()` tells; a fresh append makes a second
    event."""

    def __init__(self, message: str, *, retry: Callable[[], list[Receipt]], look: Callable[[], bool]) -> None:
        self._retry = retry
        self._look = look
        super().__init__(message)

    def retry(self) -> list[Receipt]:
        """Resend the same blocks under the same numbers; the receipts, or OutcomeUnknown again."""
        return self._retry()

    def was_stored(self) -> bool:
        """Whether all of the events are stored, without storing any; OutcomeUnknown again while it cannot be known.

        After False, those that are not stored never will be, however late their request arrives at Redis, unless by `retry()`,
        which also gives the receipts of those that are. So after False for a single event a fresh append is safe.
        """
        return self._look()


class SequenceConflict(ThermoclineError):
    """`expected_seq` is not the conversation's last seq; nothing was stored."""

    def __init__(self, conversation_id: str, *, expected_seq: int, last_seq: int) -> None:
        self.conversation_id = conversation_id
        self.expected_seq = expected_seq
        self.last_seq = last_seq
        super().__init__(
            f"conversation {conversation_id!r} is at seq {last_seq}, not {expected_seq}: "
            "read what was appended meanwhile, then append with the new expected_seq"
        )


class PartialAppend(ThermoclineError):
    """A block of `append_many` failed: `receipts` are stored, `rest` is not, `cause` says why."""

    def __init__(
        self,
        message: str,
        *,
        receipts: Sequence[Receipt | None],
        rest: Sequence[Event],
        rest_indices: Sequence[int],
        cause: ThermoclineError,
    ) -> None:
        self.receipts = list(receipts)
        """One per event given, in order; None where the event was not stored."""
        self.rest = list(rest)
        """The events not stored, in order: append these again (or `cause.retry()` if that is OutcomeUnknown)."""
        self.rest_indices = list(rest_indices)
        self.cause = cause
        super().__init__(message)


class TierUnavailable(ThermoclineError):
    """A server or disk cannot be used right now; the same call may succeed later."""


class TierCorrupt(ThermoclineError):
    """Stored data is not what was written. Never retried, never deleted automatically."""


class LeaseHeld(ThermoclineError):
    """Another worker has this namespace."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        super().__init__(f"another worker has this namespace: {owner}; stop it first, or leave the work to it")


class QueryRefused(ThermoclineError):
    """The SQL cannot be run as asked."""


class StoreReplaced(ThermoclineError):
    """A position is of a store that was wiped or restored since: what comes after it cannot be told."""


class IncompleteAnswer(ThermoclineError):
    """`require="complete"`: the answer would rest on a sample or miss a tier.

    missing  the days of which events were sampled out, each with day, events and kept, as far as they could be counted
    """

    def __init__(self, message: str, *, missing: Sequence[Any] = ()) -> None:
        self.missing = list(missing)
        super().__init__(message)


class ConfigError(ThermoclineError, ValueError):
    """Settings are wrong: every problem at once, each with the key that fixes it."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))
