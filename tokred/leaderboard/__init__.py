"""Many runs on one board: a CSV to which several processes may add at once, and pages that rank its rows.

`board` merges runs into the CSV; `ranked_row` reads its rows with their `evidence`, the predictions behind
them, which `evidence_store` keeps; `exclusions` says which rows cannot be ranked, and `ranking_groups` ranks
the others; `publish` writes pages and exports; `verify` evaluates some images again.
"""

from tokred.leaderboard.board import Change, add, merge
from tokred.leaderboard.ranked_row import read

__all__ = ["Change", "add", "merge", "read"]
