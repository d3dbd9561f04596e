"""Faults at every named step of every move: `python -m tests.points --help`."""
