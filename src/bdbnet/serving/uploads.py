"""Images that clients send: their size is checked before they are decoded."""

from dataclasses import dataclass

import numpy as np
from PIL import UnidentifiedImageError

from bdbnet.datasets.images import ImageError, content_size, decode_image, readable_formats
from bdbnet.loading import Preprocessing
from bdbnet.serving.errors import RequestError

_LONGEST_NAME = 80


@dataclass(frozen=True)
class Upload:
    """The content of an image file that was sent, not yet decoded.

    Attributes:
        name: what messages call it.
        data: content of the file.
        height, width: of the upright image, pixels.
    """

    name: str
    data: bytes
    height: int
    width: int

    @classmethod
    def checked(cls, name: str | None, data: bytes, max_pixels: int) -> "Upload":
        """The upload, if it looks like an image of at most `max_pixels`.

        Raises:
            RequestError: 400 for an empty file, 415 for another kind of file, 413 for too many pixels.
        """
        name = (name or "the image").replace("\n", " ")[-_LONGEST_NAME:]
        if not data:
            raise RequestError(400, f"{name} is empty: send an image file")
        try:
            height, width = content_size(data, name)
        except ImageError as error:
            cause = error.__cause__
            if isinstance(cause, UnidentifiedImageError):
                raise RequestError(
                    415, f"{name} is not an image; send one of {', '.join(readable_formats())}"
                ) from error
            if type(cause).__name__.startswith("DecompressionBomb"):
                raise _too_large(name, "too many", max_pixels) from error
            raise RequestError(415, f"{name} can't be read: {cause}") from error
        if height * width > max_pixels:
            raise _too_large(name, f"{width:,} x {height:,}", max_pixels)
        return cls(name, data, height, width)

    def decoded(self, preprocessing: Preprocessing, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The image or a box of it, uint8 (height, width, 3) RGB, decoded as the images of the gallery were.

        Raises:
            RequestError: 422 for a damaged file.
        """
        margin = preprocessing.decode_margin
        excess = None if margin is None else preprocessing.transform.excess
        try:
            return decode_image(self.data, self.name, box=box, excess=excess, margin=margin or 2.0)
        except ImageError as error:
            raise RequestError(
                422, f"{self.name} can't be decoded ({error.__cause__ or error}): the file is damaged or cut off"
            ) from error


def _too_large(name: str, size: str, most: int) -> RequestError:
    return RequestError(413, f"{name} has {size} pixels, the limit is {most:,}: send a smaller image")
