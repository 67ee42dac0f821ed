"""The network: trunks, branches, drop layers, and weights from files."""

from bdbnet.models.backbone import ResNetTrunk
from bdbnet.models.branches import BranchOutput, FeatureDroppingBranch, GlobalBranch
from bdbnet.models.checkpoints import CheckpointError, initialize_from, load_network, read_checkpoint, read_state_dict
from bdbnet.models.dropping import BatchDropBlock, BatchDropout, DropBlock, Dropout, SpatialDropout
from bdbnet.models.mgn import MGNNetwork
from bdbnet.models.network import BDBNetwork, EmbeddingNetwork
from bdbnet.models.osnet import OSNetTrunk
from bdbnet.models.pcb import PCBNetwork
from bdbnet.models.trunks import ImageSizeError, TimmTrunk, TorchvisionTrunk

__all__ = [
    "BDBNetwork",
    "BatchDropBlock",
    "BatchDropout",
    "BranchOutput",
    "CheckpointError",
    "DropBlock",
    "Dropout",
    "EmbeddingNetwork",
    "FeatureDroppingBranch",
    "GlobalBranch",
    "ImageSizeError",
    "MGNNetwork",
    "OSNetTrunk",
    "PCBNetwork",
    "ResNetTrunk",
    "SpatialDropout",
    "TimmTrunk",
    "TorchvisionTrunk",
    "initialize_from",
    "load_network",
    "read_checkpoint",
    "read_state_dict",
]
