"""Work shared among the processes of a launcher (`erase-sd launch`, torchrun, accelerate launch).

Inside `together` all processes run the same code in step: each computes its share of the items (`each`)
or rows (`sharing.rows`), and all get all results, so that every decision is the same everywhere. Outside,
each process is on its own. Independent pieces of work are claimed one by one instead (`sharing.claims`).
Only the first process writes the run (`writes`).
"""

from .group import any_of, each, from_first, meet, place, together, wait, writes

__all__ = ["any_of", "each", "from_first", "meet", "place", "together", "wait", "writes"]
