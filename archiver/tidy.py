"""Tidy: keep the archive few files, as old as wanted, and without litter. compact.py, expire.py and janitor.py do it."""

from __future__ import annotations

from thermocline.tiers.ledger import Batch
from thermocline.tiers.opening import Tiers
from thermocline.tiers.steps import Reach, unheard, within

from .compact import Compactor
from .expire import Expirer
from .janitor import Cleaned, Janitor


class Tidier:
    """Tidies the archive of one namespace for the worker that holds `epoch`. Errors are those of the three."""

    def __init__(self, tiers: Tiers, epoch: int, *, reach: Reach = unheard) -> None:
        """reach  told every step before and after it, as `<move>: <step>`"""
        self._expirer = Expirer(tiers, epoch, reach=within(reach, "expire"))
        self._compactor = Compactor(tiers, epoch, reach=within(reach, "compact"))
        self._janitor = Janitor(tiers, epoch, reach=within(reach, "clean"))

    def rewrite(self) -> Batch | None:
        """Expire or compact one batch; None when nothing is due. What expires is not compacted first."""
        return self._expirer.step() or self._compactor.step()

    def clean(self) -> Cleaned:
        """One pass of the janitor."""
        return self._janitor.step()
