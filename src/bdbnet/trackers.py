"""Embeddings for multi-object trackers: an `Embedder` with the methods that BoxMOT and Roboflow's trackers call.

    embedder = bdbnet.load("last.ckpt")
    reid = TrackerEmbedder(embedder)
    reid.get_features(xyxy, frame)                 # BoxMOT: boxes (N, 4) first, then the frame
    reid.extract_features(detections, frame)       # supervision's detections: anything with `.xyxy`

A tracker hands over frames as OpenCV reads them, BGR; `color="rgb"` is for those that don't. Embeddings are float32 of unit
length, which trackers compare by their cosine. Neither package is needed or imported.
"""

from typing import Any, Literal, Protocol

import numpy as np

from bdbnet.evaluation.embedder import Embedder
from bdbnet.evaluation.inputs import InputError


class HasBoxes(Protocol):
    """What is read of detections, such as supervision's `Detections`: boxes (N, 4) x1, y1, x2, y2 in pixels of the frame."""

    xyxy: np.ndarray


class TrackerEmbedder:
    """An embedder as trackers call it.

    Args:
        embedder: of `bdbnet.load`.
        color: order of the frames' channels: `bgr`, as OpenCV reads them, or `rgb`.
        batch_size: crops that the network sees at once.

    Raises:
        ValueError: another order.
    """

    def __init__(self, embedder: Embedder, *, color: Literal["bgr", "rgb"] = "bgr", batch_size: int = 128) -> None:
        if color not in ("bgr", "rgb"):
            raise ValueError(f"color={color!r}: choose bgr (frames of OpenCV) or rgb")
        self.embedder, self.color, self.batch_size = embedder, color, batch_size

    @property
    def dimensions(self) -> int:
        """Length D of an embedding."""
        return self.embedder.dimensions

    def get_features(self, xyxys: Any, img: np.ndarray) -> np.ndarray:
        """Embeddings of the boxes of a frame, as BoxMOT asks its ReID backends for them.

        Args:
            xyxys: (N, 4) or more columns (BoxMOT's detections have six: box, confidence, class), pixels; parts outside of the
                frame are cut off.
            img: uint8 (H, W, 3), see `color`.

        Returns:
            float32 (N, D), each of unit length; (0, D) without boxes. A box that has no pixel in the frame, or NaN, gets zeros,
            so that the rows stay those of the boxes: its cosine with every other is 0.

        Raises:
            InputError: not such a frame or boxes.
        """
        boxes = np.asarray(xyxys.detach().cpu() if hasattr(xyxys, "detach") else xyxys, np.float64)
        boxes = boxes[None] if boxes.ndim == 1 and boxes.size else boxes
        if boxes.size and (boxes.ndim != 2 or boxes.shape[1] < 4):
            raise InputError(f"boxes of shape {boxes.shape}: expected (N, 4): x1, y1, x2, y2 in pixels")
        frame = img[..., ::-1] if self.color == "bgr" and isinstance(img, np.ndarray) and img.ndim == 3 else img
        boxes = boxes[:, :4] if boxes.size else np.empty((0, 4))
        found = np.zeros((len(boxes), self.dimensions), np.float32)
        seen = _with_pixels(boxes, frame)
        vectors = self.embedder.embed_boxes(frame, boxes[seen], batch_size=self.batch_size)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        found[seen] = vectors / np.where(lengths > 0, lengths, 1)
        return found

    def extract_features(self, detections: HasBoxes, frame: np.ndarray) -> np.ndarray:
        """`get_features` (N, D) of supervision's detections, as Roboflow's trackers ask their ReID model for them."""
        return self.get_features(detections.xyxy, frame)

    def extract_embeddings(self, detections: HasBoxes, frame: np.ndarray) -> np.ndarray:
        """`extract_features` (N, D) under its other name."""
        return self.extract_features(detections, frame)

    def __call__(self, xyxys: Any, img: np.ndarray) -> np.ndarray:
        """`get_features` (N, D)."""
        return self.get_features(xyxys, img)


def _with_pixels(boxes: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Which boxes (N, 4) hold a pixel of the frame: bool (N,)."""
    if np.ndim(frame) != 3:
        return np.ones(len(boxes), bool)  # `embed_boxes` says what is wrong with it
    height, width = frame.shape[:2]
    finite = np.isfinite(boxes).all(axis=1)
    left, top, right, bottom = np.where(finite[:, None], boxes, 0).T
    left, top = np.floor(np.maximum(left, 0)), np.floor(np.maximum(top, 0))
    right, bottom = np.ceil(np.minimum(right, width)), np.ceil(np.minimum(bottom, height))
    return np.asarray(finite & (left < right) & (top < bottom))
