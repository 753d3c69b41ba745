"""The rows of a leaderboard and their printed forms."""
