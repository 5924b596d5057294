"""The benchmark of updates that hold on to the release, in its smallest form."""

from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_in_its_smallest_form(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import updates

    rng = np.random.default_rng(0)
    for name in "ab":
        folder = tmp_path / "images" / "train" / name
        folder.mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    plan = updates.Plan(
        teacher_images=4,
        validation=8,
        first=4,
        delivery=2,
        deliveries=1,
        teacher_epochs=1,
        first_epochs=1,
        update_epochs=1,
        n0=4,
        n=16,
        rounds=1,
        keeps=(0.0, 1.0),
    )
    out = tmp_path / "updates.md"
    updates.run(tmp_path / "images", tmp_path / "work", plan, out)
    first = out.read_text()
    rows = [line.split("|")[1:3] for line in first.split("## Deliveries")[1].splitlines()[6:]]
    assert [[cell.strip() for cell in row] for row in rows] == [["1", "0"], ["1", "1"]]
    # The second time nothing is trained: the same CPU times.
    updates.run(tmp_path / "images", tmp_path / "work", plan, out)
    assert out.read_text() == first
