"""Benchmarks: `bench/run --quick`, `bench/run TABLE`, `bench/run all`, `bench/run report`.

Every figure is measured here and now; where a bound is promised it is a ratio to a bare baseline in the same run, because
machines are noisy.

shape.py      what recorded conversations look like, as constants
text.py       text, and strings cut from it
workload.py   the events
loader.py     a store with very many of them
stores.py     a store of ours, one worker step at a time; moved.py all of them, beside DuckDB alone
servers.py    redis-server
child.py      other processes
reads.py      loaded stores that the tables of reads share
peers/        what one would pick instead
measure.py    percentiles, calls that take turns, memory
case.py       a case, a table of cases
tables/       what is measured, one file per table
results.py    what was measured, and whether it still holds
machine.py    what it was measured on
report.py     docs/benchmarks.md; plots.py its plots, markdown.py its tables, notes.md its end
sizes.py      bytes per event: a command of its own
"""

import logging

logging.getLogger("pyiceberg").setLevel(logging.ERROR)  # it warns of every column we keep no bounds of
