"""The soak: half of the peak rate for half an hour, in which a day passes every minute, and nothing may grow that should not.

    python -m tests.soak --peak                      # what this machine sustains with settle keeping up
    python -m tests.soak --minutes 30 --rate 5000

Producers, readers, Redis and the worker with all its jobs, mirror and scrub included. The clocks of all of them go a day ahead
every minute (which needs a C compiler), so that events settle, merge, are archived, sampled, compacted and expire within minutes,
snapshots of the archive's tables too. Every ten seconds it is written down how much of everything there is.

roles.py     producer and reader
sample.py    how much of everything there is now
flat.py      what grew (pure)
run.py       starts everything, takes samples, judges
"""
