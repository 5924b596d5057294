"""Images of the test set as small pictures within the page."""

import base64
from io import BytesIO

from PIL import Image

from crt.data.store import Store

SIDE = 96  # pixels of a picture at most


class Pictures:
    """The pictures of a test set, by the number of the image."""

    def __init__(self, images: Store) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, number: int) -> str:
        """The image as a data URI: lossless where it is small, else a JPEG scaled down to `SIDE` pixels."""
        pixels = self._images.images[number]
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        kind, options = (
            ("png", {"optimize": True}) if max(image.size) <= SIDE // 2 else ("jpeg", {"quality": 85})
        )
        image.thumbnail((SIDE, SIDE))
        file = BytesIO()
        image.save(file, kind, **options)
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
