"""`config show` and `doctor`: what is set, and whether it can work."""

from __future__ import annotations

from typing import Any

import typer

from .options import ReportForm, ReportOption, chosen_of, settings_of
from .output import write_object, write_report

app = typer.Typer(help="See the settings.", no_args_is_help=True)


@app.callback()
def config() -> None:
    """See the settings."""


@app.command()
def show(context: typer.Context, output: ReportOption = ReportForm.table) -> None:
    """Show every setting, its value, and where that came from. Secrets are masked."""
    from thermocline.config import load_with_sources
    from thermocline.masking import shown

    chosen = chosen_of(context)
    settings, sources = load_with_sources(chosen.overrides(), file=chosen.config)
    if settings.rollups:
        from thermocline.tiers.opening import definitions_of

        definitions_of(settings)
    rows = []
    for key, value in _flat(settings.model_dump(mode="json")):
        rows.append((key, shown(key, value), sources.get(key, "default")))
    if output is ReportForm.json:
        write_object({key: {"value": value, "from": source} for key, value, source in rows})
    else:
        write_report([(key, _text(value), source) for key, value, source in rows], ("setting", "value", "from"))


def doctor(context: typer.Context, output: ReportOption = ReportForm.table) -> None:
    """Check Redis, data directory, cold tier and clocks.

    Exit code 1 if something cannot work; each line says how to mend it.
    """
    from thermocline.doctor import FAIL, examine

    findings = examine(settings_of(context))
    if output is ReportForm.json:
        write_object([finding.as_dict() for finding in findings])
    else:
        write_report([(finding.verdict, finding.subject, finding.found) for finding in findings], ("", "checked", "found"))
    if any(finding.verdict == FAIL for finding in findings):
        raise typer.Exit(1)


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def _text(value: object) -> str:
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
