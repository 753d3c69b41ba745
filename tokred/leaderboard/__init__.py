"""The leaderboard of many runs: a CSV to which several processes may add at once, and pages with its ranks.

`board` merges runs into the CSV; `ranked_row` reads its rows with their `evidence`, the predictions behind
them, which `evidence_store` stores; `exclusions` lists reasons not to rank a row, and `ranking_groups` ranks
the others; `publish` writes pages and exports; `verify` evaluates a sample of the images again.
"""

from tokred.leaderboard.board import Change, add, merge
from tokred.leaderboard.ranked_row import read

__all__ = ["Change", "add", "merge", "read"]
