"""Two worlds: a real store whose events move through all tiers, and a plain list. Random histories; both agree at every step.

    python -m tests.worlds --histories 1000 --seed 1

A history appends, repeats, settles, merges, archives, compacts, trims, purges, breaks moves off at any step, kills Redis, loses
the ledger and turns the worker's clock; after each step all three relations must be what the list says, and so must every answer.

model.py     the plain list: what a store must answer, in Python alone
world.py     the real store: its moves, how they are broken off, and how it is opened again
machine.py   the rules of a history
"""
