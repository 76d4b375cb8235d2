"""What runs where, as workers write it and the driver reads it: an actor beside the driver.

It imports nothing of ours, so that its process stays small.
"""

from __future__ import annotations

News = tuple[str, str, str]  # "begin", a job, where it runs; or "stage", a job, what is being done


class Board:
    """News of the jobs that run."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self.news: list[News] = []

    def begin(self, name: str, where: str) -> None:
        """A job runs there."""
        self.news.append(("begin", name, where))

    def stage(self, name: str, what: str) -> None:
        """What of a job is being done."""
        self.news.append(("stage", name, what))

    def read(self) -> list[News]:
        """Return what is new, and forget it."""
        news, self.news = self.news, []
        return news
