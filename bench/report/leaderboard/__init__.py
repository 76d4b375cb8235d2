"""A leaderboard: contributed records of any machines, held against each other on one page."""
