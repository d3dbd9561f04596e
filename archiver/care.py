"""What the worker does for stored data beside moving it: reads it again, mends what is damaged, and mirrors it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from thermocline.errors import LeaseHeld
from thermocline.tiers.opening import Tiers
from thermocline.tiers.scrub_state import read_state
from thermocline.tiers.steps import Reach, unheard, within

from .health import Health
from .lease import Lease
from .mend import Mender
from .mirror import Mirrorer
from .scrub import Scrubbed, ScrubPass, due_pass, items, scrub
from .scrub_plan import SEGMENT
from .work_report import Progress

log = logging.getLogger("thermocline.worker")


class Care:
    """Keeps the data of one namespace sound for the worker that holds `epoch`."""

    def __init__(self, tiers: Tiers, epoch: int, health: Health, *, mended: Callable[[], None], reach: Reach = unheard) -> None:
        """mended  called after something was
        reach   told every step before and after it, as `<move>: <step>`
        """
        self._tiers = tiers
        self._mended = mended
        self._health = health
        mirrored = tiers.settings.warm.mirror is not None
        self.mirrorer = Mirrorer(tiers, reach=within(reach, "mirror")) if mirrored else None
        """None without warm.mirror."""
        self._mender = Mender(tiers, epoch, fetch=self.mirrorer.fetch if self.mirrorer is not None else None)
        self._pass: ScrubPass | None = None

    def close(self) -> None:
        if self.mirrorer is not None:
            self.mirrorer.close()

    def mirror(self) -> bool:
        """Copy the next of what warm.mirror lacks; whether there is more to do now. Nothing happens without a mirror."""
        if self.mirrorer is None:
            return False
        try:
            more = self.mirrorer.step()
        finally:
            self._health.note(**self.mirrorer.waiting())
        if self.mirrorer.damaged:
            names = ", ".join(sorted(self.mirrorer.damaged)[:3])
            self._health.stuck("mirror", f"no copy of damaged segments can be made ({names}): run `thermocline scrub`")
        else:
            self._health.freed("mirror")
        return more

    def scrub(self) -> bool:
        """Read the next object that is due, and mend it if it is damaged; whether there are more in this pass."""
        if self._pass is None:
            self._pass = due_pass(self._tiers, mend=self._mender.mend)
        try:
            more = self._pass.step()
        except BaseException:
            self._pass = None
            raise
        if not more:
            self._tell(self._pass)
            self._pass = None
        return more

    def _tell(self, done: ScrubPass) -> None:
        report = done.report
        for damage in report.damages:
            for line in damage.lines():
                log.log(logging.WARNING if damage.mended else logging.ERROR, "scrub: %s", line.strip())
        for problem in report.unread:
            log.warning("scrub: %s", problem)
        if any(damage.mended for damage in report.damages):
            self._health.freed("merge")  # it stops at a damaged segment; if there is another, it will say so again
            self._mended()
        left = read_state(self._tiers.settings.namespace_dir).damaged
        self._health.note(scrubbed_us=time.time_ns() // 1000, scrubbed_bytes=report.bytes, damaged=len(left))
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            self._health.stuck("scrub", f"{left[0].lines()[0]}{more}: `thermocline scrub` says what is gone")
        else:
            self._health.freed("scrub")


@contextmanager
def mirror_of(tiers: Tiers) -> Iterator[Mirrorer | None]:
    """What mirrors a namespace; None when warm.mirror is not set."""
    if tiers.settings.warm.mirror is None:
        yield None
        return
    mirrorer = Mirrorer(tiers)
    try:
        yield mirrorer
    finally:
        mirrorer.close()


def scrub_now(tiers: Tiers, *, progress: Callable[[Progress], None] = lambda _: None) -> tuple[Scrubbed, str]:
    """(what reading everything found, with what came of mending it; why nothing was mended, empty when that was tried).

    While a worker has the namespace it is the one to mend: it looks again, at its next pass, at what is damaged now.
    """
    report = scrub(tiers, progress=progress)
    damaged = {one.item for one in report.damaged if one.item.startswith(SEGMENT)}
    if not damaged:
        return report, ""
    try:
        lease = Lease(tiers.settings.namespace_dir, tiers.ledger)
    except LeaseHeld as exc:
        return report, f"{exc.owner} has this namespace: it mends what can be mended at its next pass (worker.scrub_every_s)"
    with lease:
        every, _ = items(tiers)
        chosen = [item for item in every if item.key in damaged]
        with mirror_of(tiers) as mirrorer:
            mender = Mender(tiers, lease.epoch, fetch=mirrorer.fetch if mirrorer is not None else None)
            again = ScrubPass(tiers, every, chosen, mend=mender.mend)
            while again.step():
                pass
    others = [one for one in report.damages if one.item not in damaged]
    return msgspec.structs.replace(report, damages=(*again.report.damages, *others)), ""
