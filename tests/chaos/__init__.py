"""The chaos runner: real processes, real kills, and a check of every acknowledged event.

    python -m tests.chaos --redis redis-server --fsync always --seed 1

Producers append and write down what was acknowledged; readers bracket every count by Redis' own counter; a worker settles and
merges; the runner kills and stops them by a seeded plan, and at the end compares what is stored with what was acknowledged.

plan.py      which fault comes when, from the seed
roles.py     producer, reader and worker: what each process does, and what it writes down
run.py       starts everything, injects the plan, waits for the end
check.py     the verdict, from the journals and the store
"""
