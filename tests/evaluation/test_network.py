"""Starting weights of a network that a configuration describes."""

import re

import pytest
import torch

from bdbnet.config import compose_settings
from bdbnet.evaluation.network import build_network
from bdbnet.models import CheckpointError


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"text", "truncated, damaged|not a checkpoint"),
        ({"fc.weight": torch.ones(1)}, "does not match the architecture"),
    ],
)
def test_what_is_wrong_with_a_file_of_starting_weights_names_the_key(content, said, tmp_path):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    config = compose_settings("train", ["run_name=x", "backbone=osnet_x0_25", f"backbone.weights={path}"])
    with pytest.raises(CheckpointError, match=f"^backbone.weights={re.escape(str(path))}: .*({said})"):
        build_network(config, 2)
