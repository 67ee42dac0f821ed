"""bdbnet: train, evaluate and ship image embeddings for person re-identification and image retrieval."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("bdbnet")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
