"""Benchmarks: `python -m bench [--events N] [--only NAME]`.

Every figure is measured here and now; where a bound is promised it is a ratio to a bare baseline in the same run, because
machines are noisy.


synthetic.py   the events
timing.py      percentiles and the report's rows
appending.py   append one by one, append_many, Producer
settling.py    settle and merge, against bare DuckDB
querying.py    recent, one conversation, a time-bounded aggregate
"""
