"""The repository that commands work on: choices, drops, pins, releases, DVC and git."""

from crt.project.repository import Project

__all__ = ["Project"]
