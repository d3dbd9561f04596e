"""The cells of the matrix in s3_matrix.py: a fault, a kind of request, and when it strikes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tests.s3_front import (
    CUT,
    CUT_REQUEST,
    DROP,
    DROP_BEFORE,
    FLIP,
    FLIP_REQUEST,
    HANG,
    SLOW,
    Action,
    Answer,
)

FAULTS: Final[dict[str, Action]] = {
    "500": Answer(500, "InternalError", "We encountered an internal error. Please try again."),
    "503": Answer(503, "SlowDown", "Please reduce your request rate."),
    "403": Answer(403, "AccessDenied", "Access Denied."),
    "hang": HANG,
    "drop before": DROP_BEFORE,
    "drop after": DROP,
    "cut reply": CUT,
    "cut request": CUT_REQUEST,
    "flip reply": FLIP,
    "flip request": FLIP_REQUEST,
    "slow": SLOW,
}
OF_COMMITS: Final = ("PUT", "GET", "HEAD", "DELETE")
"""Those that archive and compact make."""
REQUESTS: Final = (*OF_COMMITS, "LIST", "DELETES", "UPLOADS", "ABORT")
NEVER_MADE: Final = dict.fromkeys(("CREATE", "PART", "COMPLETE"), "objects are stored by one PUT each")
TIMES: Final = ("first", "second", "always")
TOGETHER: Final = (("PUT",), ("GET",), ("HEAD", "LIST"), ("DELETE", "ABORT"), ("DELETES",), ("UPLOADS",))
"""Kinds whose faults can last at once, when cells are shared: none of a group keeps another from being asked for."""
BODILESS_REQUESTS: Final = ("GET", "HEAD", "DELETE", "LIST", "UPLOADS", "ABORT")
BODILESS_REPLIES: Final = ("PUT", "HEAD", "DELETE", "ABORT")
NEVER_MET: Final[dict[tuple[str, str], str]] = {
    **{(fault, kind): "the request has no body" for fault in ("cut request", "flip request") for kind in BODILESS_REQUESTS},
    **{(fault, kind): "the reply has no body" for fault in ("cut reply", "flip reply") for kind in BODILESS_REPLIES},
}
"""Cells whose fault cannot occur. One round tries them all, and says if one does."""
RED: Final = {
    (fault, kind) for fault in ("500", "503", "403", "hang", "drop before", "slow") for kind in REQUESTS if kind != "DELETE"
}
"""Where health must be red while the fault lasts. DELETE removes old versions of Iceberg metadata: what
is not removed then is found by the janitor, which uses DELETES."""


class Cell(NamedTuple):
    fault: str
    request: str
    times: str

    def __str__(self) -> str:
        return f"{self.times} {self.request}: {self.fault}"


CELLS: Final = [
    Cell(fault, request, times)
    for fault in FAULTS
    for request in REQUESTS
    for times in TIMES
    if (fault, request) not in NEVER_MET
]
Trial = list[list[Cell]]
"""Groups of cells that strike at once; one group after the other, and then the recovery."""


def trials(cells: Sequence[Cell], *, shared: bool) -> list[Trial]:
    """What has a recovery of its own: a cell, or all cells of a fault."""
    if not shared:
        return [[[cell]] for cell in cells]
    found: list[Trial] = []
    for fault in FAULTS:
        mine = [cell for cell in cells if cell.fault == fault]
        once = [[cell for cell in mine if cell.times == times] for times in TIMES if times != "always"]
        lasting = [[cell for cell in mine if cell.times == "always" and cell.request in kinds] for kinds in TOGETHER]
        found.append([group for group in (*once, *lasting) if group])
    return [trial for trial in found if trial]


def chosen(only: str) -> list[Cell]:
    """The cells whose name has that text."""
    return [cell for cell in CELLS if only in str(cell)]
