"""Augmentation against torchvision's functions, image by image."""

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st

from crt.training.augment import Moves, augment, draw_moves


def images(count: int, size: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, size, size, channels), dtype=torch.uint8)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(4, 40), area=st.floats(0.05, 0.99), flip=st.booleans(), seed=st.integers(0, 2**31))
def test_a_resized_crop_is_the_box_resized(size, area, flip, seed):
    """Boxes that begin and end between pixels, against an affine map in float64 written out."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    moves = draw_moves(3, 0, area, flip, generator)
    batch = images(3, size)
    out = augment(batch, 0, moves)
    assert out.shape == (3, 3, size, size)
    assert out.min() >= 0
    assert out.max() <= 1
    for i in range(3):
        top, left, height, width = moves.box[:, i].double().tolist()
        centres = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        rows = (top + height * centres) * size - 0.5
        columns = (left + width * centres) * size - 0.5
        if moves.flip[i]:
            columns = columns.flip(0)
        pixels = batch[i].double() / 255

        def at(values: torch.Tensor, where: torch.Tensor, dim: int) -> torch.Tensor:
            low = where.floor()
            share = (where - low).reshape([-1 if d == dim else 1 for d in range(3)])
            first = values.index_select(dim, low.long().clamp(0, size - 1))
            second = values.index_select(dim, (low.long() + 1).clamp(0, size - 1))
            return first * (1 - share) + second * share

        expected = at(at(pixels, rows, 0), columns, 1).permute(2, 0, 1).float()
        torch.testing.assert_close(out[i], expected, rtol=0, atol=2e-4)


def test_a_box_of_whole_pixels_is_torchvisions_resized_crop():
    batch = images(1, 16)
    box = torch.tensor([[0.25], [0.5], [0.5], [0.5]])
    for flip in (False, True):
        moves = Moves(torch.zeros(2, 1).long(), torch.tensor([flip]), box)
        expected = TF.resized_crop(
            batch[0].permute(2, 0, 1).float() / 255, 4, 8, 8, 8, [16, 16], antialias=False
        )
        out = augment(batch, 0, moves)[0]
        # At the box's edge torchvision repeats its last pixel, and ours looks one pixel further.
        inner = out.flip(-1) if flip else out
        torch.testing.assert_close(inner[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], rtol=0, atol=1e-5)


def test_the_whole_image_stays_as_it_is():
    batch = images(4, 9)
    moves = Moves(
        torch.zeros(2, 4).long(),
        torch.zeros(4).bool(),
        torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].repeat(1, 4),
    )
    torch.testing.assert_close(augment(batch, 0, moves), batch.permute(0, 3, 1, 2) / 255, rtol=0, atol=1e-5)


def test_boxes_have_the_areas_and_ratios_asked_for_and_lie_inside():
    moves = draw_moves(20_000, 0, 0.3, True, torch.Generator().manual_seed(0))
    top, left, height, width = moves.box
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 1 + 1e-6).all()
    assert (left + width <= 1 + 1e-6).all()
    free = (height < 1) & (width < 1)
    area, ratio = (height * width)[free], (width / height)[free]
    assert area.min() >= 0.3 - 1e-5
    assert area.max() > 0.9
    assert ratio.min() >= 0.75 - 1e-5
    assert ratio.max() <= 4 / 3 + 1e-5
    assert ratio.log().mean() == pytest.approx(0, abs=0.01)
    small = area[(area < 0.5)]  # sides longer than the image do not occur there
    assert small.mean() == pytest.approx(0.4, abs=0.01)
    assert moves.flip.float().mean() == pytest.approx(0.5, abs=0.02)
    assert (top / (1 - height).clamp(min=1e-6))[free].mean() == pytest.approx(0.5, abs=0.02)


def test_moves_are_cut_and_joined():
    moves = draw_moves(10, 2, 0.5, True, torch.Generator().manual_seed(1))
    again = Moves.join([moves[:3], moves[3:]])
    assert all(torch.equal(getattr(again, part), getattr(moves, part)) for part in ("shift", "flip", "box"))
