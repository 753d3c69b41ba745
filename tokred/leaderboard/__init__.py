"""Many runs on one board: a CSV to which several processes may add at once, and pages that rank its rows.

`board` reads, merges and writes the CSV; `evidence` is the predictions behind its rows, and `evidence_store`
keeps them; `ranking_groups` says which rows compare, excludes the others, and ranks; `page` and `export` show
the board; `verify` evaluates some images again.
"""

from tokred.leaderboard.board import CSV_NAME, IDENTITY, QUESTION, Change, add, merge, read, write

__all__ = ["CSV_NAME", "IDENTITY", "QUESTION", "Change", "add", "merge", "read", "write"]
