"""What every worker needs, imported once: workers are copies of the process that holds it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pytorch_lightning  # noqa: F401
import torch  # noqa: F401

import bdbnet.embed
import bdbnet.evaluate
import bdbnet.prepare
import bdbnet.report
import bdbnet.reproduce
import bdbnet.search
import bdbnet.train  # noqa: F401
