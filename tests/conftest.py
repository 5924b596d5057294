"""The order of the whole suite."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: with several workers, none is left alone with one of them at the end."""
    items.sort(key=lambda item: (item.path.parent.name != "pipeline", item.path.name != "test_retraining.py"))
