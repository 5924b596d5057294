"""The order and the marks of the whole suite."""

import os
from pathlib import Path

import pytest

# Programs that tests start find the factories too.
_FACTORIES = str(Path(__file__).parent / "factories")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [_FACTORIES, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
).rstrip(os.pathsep)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: with several workers, none is left alone with one of them at the end.

    What stands in tests/pipeline runs a pipeline, so it is slow, and so is what calls the real DVC.
    """
    for item in items:
        if item.path.parent.name == "pipeline" or item.get_closest_marker("real_dvc"):
            item.add_marker(pytest.mark.slow)
    items.sort(
        key=lambda item: (
            item.get_closest_marker("quality") is None,
            item.path.parent.name != "pipeline",
            item.path.name != "test_retraining.py",
        )
    )
