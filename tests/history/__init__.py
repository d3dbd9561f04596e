"""A history of many clients under faults, and a checker that proves of every conversation that it is linearizable.

    python -m tests.history --minutes 10 --seed 1

Clients append in every way there is, and read in every way, from all tiers; each call is written down with the times at which it
began and ended, and as ok, failed or unknown. Meanwhile a nemesis kills, stops and starves what they use, by a seeded plan.

record.py    what is known of a write and of a read; digests of rows
check.py     what is wrong with a history (pure; the reasoning is there)
plan.py      which fault comes when, from the seed
clients.py   the clients: what each does, and its journal
journal.py   journals, written and read back as a history
worker.py    the worker, forked with its imports done
nemesis.py   faults, done and undone
run.py       starts everything, runs the plan, reads everything in the end
"""
