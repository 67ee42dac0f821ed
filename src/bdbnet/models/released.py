"""The models that the authors of the Batch DropBlock Network released with their code."""

from pathlib import Path

from bdbnet.models.backbones.resnet import ResNetBackbone
from bdbnet.models.bdb import BDBNetwork
from bdbnet.models.formats import known_format, rows
from bdbnet.models.weights import CheckpointError, load_network, read_state_dict


def load_released_bdb(path: str | Path) -> BDBNetwork:
    """The network in a file of the released code (`.pth.tar`), in evaluation mode, with the classifiers of the file.

    Its embedding is that of the released code: the global branch's 512 numbers, then the dropping branch's 1,024, not
    normalised. Persons are seen at 384 x 128 pixels, see `bdbnet.load` for an embedder that knows this.

    Raises:
        CheckpointError: as `read_state_dict`, and for a file of another program or with other classifiers on the branches.
    """
    state = read_state_dict(path)
    found = known_format(state)
    if found is None or "global_softmax.weight" not in state:
        raise CheckpointError(
            f"{path}: not a model of the released BDB code, whose keys are backbone.*, res_part.*, global_reduction.*, "
            f"res_part2.*, reduction.* and softmax.*; its keys: {', '.join([*state][:6])}, .... Use bdbnet.load for other files"
        )
    classes = rows(state, "softmax.weight")
    backbone = ResNetBackbone(found.backbone["name"], weights="none")
    network = BDBNetwork(classes, backbone, found.model["branches"], embedding_dims=found.model.get("embedding_dims"))
    load_network(network, path)
    return network.eval()
