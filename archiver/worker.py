"""The worker: settle, trim, merge, archive, tidy, purge, checkpoint, verify, scrub, a step at a time, until told to stop.

All jobs run in one thread, so no two moves ever run at once; a long row of merges lets settle in between. Every step can be cut
short by a crash and is repeated, so a stop waits for the step in hand only for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec

from thermocline.errors import ConfigError, LeaseHeld, ThermoclineError, TierCorrupt, TierUnavailable
from thermocline.tiers.opening import Tiers
from thermocline.tiers.steps import Reach, unheard, within

from .archive import Archiver
from .care import Care
from .health import Health
from .lease import Lease
from .merge import Merger
from .once import archive_all, mirror_all, tidy_all
from .purge import Purger
from .schedule import Job, Schedule
from .settle import Settler
from .termination import ending
from .tidy import Tidier
from .trim import Trimmer
from .verify import verify
from .work_report import Progress, WorkReport

log = logging.getLogger("thermocline.worker")
ONCE_WAIT_S = 5
"""How long `once` waits, without anything settling, for Redis to have its newest events on disk."""
ONCE_POLL_S = 0.05
TICK_S = 0.5
STOP_SHARE = 0.6
"""Of worker.stop_within_s that a step in hand may take: what is left is for the end of the process."""
FOREVER_S = 1e6


class Worker:
    """The one worker of a namespace. LeaseHeld when there is another.

    The tiers stay the caller's: opened before, closed after.
    """

    def __init__(
        self,
        tiers: Tiers,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        reach: Reach = unheard,
    ) -> None:
        """reach  told every step of every move before and after it, as `<move>: <step>`"""
        self._tiers = tiers
        self._reach = reach
        self._settings = tiers.settings.worker
        self._monotonic = monotonic
        self._wall = wall
        self._sleep = sleep
        self._stopping = threading.Event()
        self._step_in_hand = threading.Lock()
        self._lost: LeaseHeld | None = None
        self._schedule: Schedule | None = None
        self._settle_sound = True
        self._confirmed_run = ""
        self._settled_s = -1e9

    def once(self, progress: Callable[[Progress], None] | None = None) -> WorkReport:
        """Do everything that is due, also below the thresholds, for the events that are there now; then return.

        Notes what each shard holds, waits at most 5 s until all of it may be settled, settles it, trims, merges, mirrors,
        archives, tidies the archive, purges, mirrors what became of it.
        Called again with nothing appended in between, it changes nothing. Errors are raised as they come: what was done
        until then stays done.
        """
        tell = progress or (lambda _: None)
        with self._leased():
            report = self._settle_all(tell).plus(trimmed_blocks=self._trim_now())
            report = self._merge_all(report, tell)
            mirrored = mirror_all(self._care, report, tell)
            report = archive_all(self._archiver, mirrored, tell)
            report = tidy_all(self._tidier, report, tell)
            purged = self._purger.step()
            tell(Progress(step="purge", done=purged.files + purged.removed, total=0))
            report = report.plus(purged_files=purged.files + purged.removed)
            return report if mirrored.problem else mirror_all(self._care, report, tell)

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, then finish the step in hand. Main thread only. LeaseHeld when another worker took over.

        When that takes nearly worker.stop_within_s the process ends without it: the next start repeats it.
        """
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
        with ending(self._stopping.set, within_s=self._settings.stop_within_s * STOP_SHARE):
            self._begin()
            while not self._stopping.wait(TICK_S):
                self.follow_clock()
            self.stop(FOREVER_S)
        if self._lost is not None:
            raise self._lost

    def start(self) -> None:
        """Take the lease and begin to work in a thread of its own. LeaseHeld when there is another worker."""
        self._stopping.clear()
        self._begin()

    def _begin(self) -> None:
        """Begin, unless told to stop already: then no step is done."""
        self._take_lease()
        log.info("worker of namespace %s started, epoch %d", self._tiers.settings.namespace, self._lease.epoch)
        settings, failures = self._settings, self._health.failures
        jobs = [
            Job(self._settle_job, settings.settle_every_s, lambda: failures("settle", "trim")),
            Job(self._merge_job, settings.merge_every_s, lambda: failures("merge")),
            Job(self._archive_job, settings.archive_every_s, lambda: failures("archive")),
            Job(self._tidy_job, settings.archive_every_s, lambda: failures("tidy", "clean")),
            Job(self._purge_job, settings.purge_every_s, lambda: failures("purge")),
            Job(self._checkpoint_job, settings.checkpoint_every_s, lambda: failures("checkpoint"), at_once=False),
            Job(self._verify_job, settings.verify_every_s, lambda: failures("verify"), at_once=False),
            Job(self._mirror_job, settings.mirror_every_s, lambda: failures("mirror")),
            Job(self._scrub_job, settings.scrub_every_s, lambda: failures("scrub")),
        ]
        self._schedule = Schedule(jobs, monotonic=self._monotonic, wall=self._wall)
        self._schedule.start()

    def stop(self, within_s: float | None = None) -> bool:
        """Finish the step in hand and let go of the lease; False when it did not end in time (worker.stop_within_s)."""
        self._stopping.set()
        if not self._step_in_hand.acquire(timeout=self._settings.stop_within_s if within_s is None else within_s):
            return False
        self._step_in_hand.release()
        if self._schedule is not None:
            self._schedule.stop()
            self._schedule = None
            self._health.note(running=False)
            self._health.write()
            self._care.close()
            self._lease.release()
            log.info("worker stopped")
        return True

    def follow_clock(self) -> None:
        """Run every job now when the wall clock was set."""
        if self._schedule is None or self._step_in_hand.locked():
            return
        moved_s = self._schedule.follow_clock()
        if moved_s is not None:
            log.warning("the clock was moved by %.0f s: all jobs are due", moved_s)

    @property
    def lost(self) -> LeaseHeld | None:
        """Who took over, when somebody did: this worker does nothing any more."""
        return self._lost

    @property
    def problem(self) -> str | None:
        """Why health is red; None when it is green."""
        return self._health.problem

    def _take_lease(self) -> None:
        settings = self._tiers.settings
        self._lease = Lease(settings.namespace_dir, self._tiers.ledger)
        epoch = self._lease.epoch
        self._health = Health(settings.namespace_dir, failures_red=settings.worker.failures_red, epoch=epoch)
        told = partial(within, self._reach)
        self._settler = Settler(self._tiers, epoch, monotonic=self._monotonic, sleep=self._sleep, reach=told("settle"))
        self._trimmer = Trimmer(self._tiers, monotonic=self._monotonic, reach=told("trim"))
        self._merger = Merger(self._tiers, epoch, reach=told("merge"))
        self._care = Care(self._tiers, epoch, self._health, mended=self._merger.forget, reach=self._reach)
        self._archiver = Archiver(self._tiers, epoch, mirror=self._care.mirrorer, reach=told("archive"))
        self._tidier = Tidier(self._tiers, epoch, reach=self._reach)
        self._purger = Purger(self._tiers, epoch, reach=told("purge"))

    @contextmanager
    def _leased(self) -> Iterator[None]:
        self._take_lease()
        try:
            yield
        finally:
            self._care.close()
            self._health.note(running=False)
            self._health.write()
            self._lease.release()

    # What once() does.

    def _settle_all(self, tell: Callable[[Progress], None]) -> WorkReport:
        """Settle up to what Redis holds now."""
        report = WorkReport()
        target = self._confirming(self._tiers.hot.cut)
        start = {state.shard: state.events for state in self._tiers.ledger.view().shards}
        total = sum(max(0, one.events_total - start[one.shard]) for one in target)
        wait_s = max(ONCE_WAIT_S, self._tiers.settings.hot.durable_lag_s + 3)
        last_s = self._monotonic()
        while True:
            settled = {state.shard: state.events for state in self._tiers.ledger.view().shards}
            left = sum(max(0, one.events_total - settled[one.shard]) for one in target)
            tell(Progress(step="settle", done=total - left, total=total))
            if left == 0:
                return report
            step = self._confirming(lambda: self._settler.step(force=True))
            report = report.plus(
                settled_events=step.events, rejected_events=step.rejected, segments=int(step.segment is not None)
            )
            if step.events:
                last_s = self._monotonic()
            elif step.full is not None:
                return msgspec.structs.replace(report, left_events=left, problem=step.full)
            elif self._monotonic() - last_s > wait_s:
                slow = f"Redis did not have the last {left} events on disk within {wait_s:g} s: look at its disk, then run again"
                return msgspec.structs.replace(report, left_events=left, problem=slow)
            else:
                self._sleep(ONCE_POLL_S)

    def _confirming(self, act: Callable[[], Any]) -> Any:
        """What `act` gives; once more after confirming when something was unavailable."""
        try:
            return act()
        except TierUnavailable:
            self._tiers.reconfirm()
            return act()

    def _trim_now(self) -> int:
        dropped = self._trimmer.step()
        if self._trimmer.over_budget():
            self._sleep(self._tiers.settings.hot.log_grace_s)
            dropped += self._trimmer.step()
        return dropped

    def _merge_all(self, report: WorkReport, tell: Callable[[Progress], None]) -> WorkReport:
        while merged := self._merger.step(force=True):
            report = report.plus(merges=1, merged_events=merged.rows)
            tell(Progress(step="merge", done=report.merges, total=0))
        return report

    # The jobs. Each catches everything, so that the scheduler goes on whatever happens.

    def _settle_job(self) -> None:
        self._settled_s = self._monotonic()
        if self._settle_sound:
            self._do("settle", self._settle)
        self._do("trim", self._trimmer.step)

    def _settle(self) -> None:
        try:
            step = self._settler.step()
        except TierUnavailable:
            self._tiers.reconfirm()
            raise
        if self._settler.run_id != self._confirmed_run:
            self._tiers.reconfirm()
            self._trimmer.forget()
            self._confirmed_run = self._settler.run_id
        self._health.note(waiting_events=step.waiting_events, waiting_bytes=step.waiting_bytes, oldest_wait_s=step.oldest_wait_s)
        if step.full is not None:
            self._health.stuck("warm", step.full)
        else:
            self._health.freed("warm")
        if step.events:
            self._health.note(settled_us=int(self._wall() * 1e6), settled_events=step.events)
            where = step.segment.segment_id if step.segment is not None else "nothing: all were rejected"
            log.info("settled %d of %d waiting events into %s", step.events, step.waiting_events, where)
        if step.rejected:
            log.warning("%d events could not be used: see rejected/", step.rejected)

    def _merge_job(self) -> None:
        while self._do("merge", self._merge):
            self._settle_if_due()

    def _settle_if_due(self) -> None:
        if self._monotonic() - self._settled_s >= self._settings.settle_every_s:
            self._settle_job()

    def _merge(self) -> bool:
        merged = self._merger.step()
        if merged is not None:
            where = f"{merged.outputs} of level {merged.level}, {merged.rows} events"
            log.info("merged %d segments into %s", merged.inputs, where)
        return merged is not None

    def _archive_job(self) -> None:
        self._mirror_job()  # what has no copy is not archived
        while self._settle_sound and self._do("archive", self._archive):
            self._settle_job()

    def _archive(self) -> bool:
        batch = self._archiver.step()
        if batch is not None:
            self._health.note(archived_us=int(self._wall() * 1e6), archived_events=batch.events_in)
            where = f"{len(batch.files)} files of batch {batch.batch_id}"
            log.info("archived %d events, %d of them kept, into %s", batch.events_in, batch.events_kept, where)
        return batch is not None

    def _tidy_job(self) -> None:
        while self._settle_sound and not self._health.failures("archive") and self._do("tidy", self._tidy):
            self._settle_job()  # while nothing can be archived nothing can be rewritten either; but space can be made
        if self._settle_sound:
            self._do("clean", self._clean)

    def _tidy(self) -> bool:
        batch = self._tidier.rewrite()
        if batch is not None:
            became = f"became {len(batch.files)}" if batch.files else f"expired with {batch.events_in} events"
            log.info("%d files of the archive %s", len(batch.removed), became)
        return batch is not None

    def _clean(self) -> None:
        cleaned = self._tidier.clean()
        if cleaned.unclaimed:
            self._health.stuck("clean", f"another ledger archived {cleaned.unclaimed} objects: run `thermocline recover`")
        else:
            self._health.freed("clean")
        if cleaned.removed or cleaned.snapshots:
            log.info("removed %d objects, %d bytes; %d snapshots expired", cleaned.removed, cleaned.bytes, cleaned.snapshots)

    def _purge_job(self) -> None:
        if self._settle_sound:  # while it is in doubt whether this ledger is the right one nothing is removed
            self._do("purge", self._purge)

    def _purge(self) -> None:
        purged = self._purger.step()
        if purged.unclaimed:
            self._health.stuck("purge", f"{purged.unclaimed} segment files are older than the ledger: run `thermocline recover`")
        if purged.files or purged.orphans:
            log.info("purged %d files, %d bytes; %d orphans to trash/", purged.files, purged.bytes, purged.orphans)

    def _checkpoint_job(self) -> None:
        self._do("checkpoint", lambda: self._health.note(ledger_wal_bytes=self._tiers.ledger.checkpoint()))

    def _verify_job(self) -> None:
        self._do("verify", self._verify)

    def _verify(self) -> None:
        self._tiers.hot.facts()  # raises when Redis is away: that is a failure which passes, not data that is wrong
        problems = verify(self._tiers).problems
        self._health.note(verified_us=int(self._wall() * 1e6))
        for problem in problems:
            log.error("verify: %s", problem)
        if problems:
            self._health.stuck("verify", problems[0])
        else:
            self._health.freed("verify")

    def _mirror_job(self) -> None:
        while self._settle_sound and self._do("mirror", self._care.mirror):
            self._settle_if_due()

    def _scrub_job(self) -> None:
        while self._settle_sound and self._do("scrub", self._care.scrub):
            self._settle_if_due()

    def _do(self, job: str, act: Callable[[], Any]) -> Any:
        """What `act` gives, None when it failed or the worker stops. Failures are counted, logged and shown in worker.json."""
        with self._step_in_hand:
            if self._stopping.is_set():
                return None
            try:
                result = act()
            except LeaseHeld as exc:
                self._lost = exc
                self._stopping.set()
                log.error("%s: %s", job, exc)
            except TierCorrupt as exc:
                self._health.stuck(job, str(exc))
                self._settle_sound = self._settle_sound and job != "settle"
                log.error("%s: %s", job, exc)
            except ThermoclineError as exc:
                if self._health.failed(job, str(exc), lasting=isinstance(exc, ConfigError)):
                    log.warning("%s: %s", job, exc)
            except Exception as exc:
                if self._health.failed(job, f"{type(exc).__name__}: {exc}"):
                    log.exception("%s failed: please report this", job)
            else:
                if self._health.worked(job):
                    log.info("%s works again", job)
                return result
            finally:
                self._health.write()
            return None


__all__ = ["Progress", "WorkReport", "Worker"]
