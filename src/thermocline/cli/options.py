"""The options every command has, and the settings that follow from them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

if TYPE_CHECKING:
    from thermocline.config import Settings


PARTLY: Final = 3
"""Exit code of a command that did some of what was asked."""


class Form(StrEnum):
    """How an answer is written."""

    table = "table"
    json = "json"
    csv = "csv"
    arrow = "arrow"


class ReportForm(StrEnum):
    """How a report is written."""

    table = "table"
    json = "json"


FormOption = Annotated[Form, typer.Option("-o", "--output", help="How to write the answer.")]
ReportOption = Annotated[ReportForm, typer.Option("-o", "--output", help="How to write the report.")]


class Chosen(NamedTuple):
    """What the options before the command say."""

    config: Path | None = None
    data_dir: Path | None = None
    namespace: str | None = None

    def overrides(self, **more: Any) -> dict[str, Any]:
        chosen = {"data_dir": self.data_dir, "namespace": self.namespace, **more}
        return {key: value for key, value in chosen.items() if value is not None}


def chosen_of(context: typer.Context) -> Chosen:
    found = context.find_object(Chosen)
    assert found is not None, "the app's callback runs before every command"
    return found


def settings_of(context: typer.Context, **overrides: Any) -> Settings:
    """The settings a command runs with. ConfigError names every problem."""
    from thermocline.config import load
    from thermocline.masking import mask_records

    chosen = chosen_of(context)
    settings = load(chosen.overrides(**overrides), file=chosen.config)
    mask_records(settings)
    return settings
