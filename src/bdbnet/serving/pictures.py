"""Pictures of gallery images, small enough to send."""

import io
from pathlib import Path

from bdbnet.datasets.images import MAX_PIXELS, Box, ImageError, image_size, read_image
from bdbnet.figures import read_thumbnail


def jpeg(file: Path, box: Box | None, size: int) -> bytes:
    """An image file, or a box of it, as JPEG that fits `size` x `size` pixels, upright.

    Raises:
        ImageError, OSError: a file that is not there, damaged or too large.
    """
    if box is None:
        height, width = image_size(file)
        if height * width > MAX_PIXELS:
            raise ImageError(f"image {file} has {width} x {height} pixels, the limit is {MAX_PIXELS:,}")
        picture = read_thumbnail(file, size)
    else:
        picture = read_thumbnail(read_image(file, box=box), size)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()
