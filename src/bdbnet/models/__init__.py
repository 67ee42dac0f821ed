"""Networks: backbones, branches, drop layers, and reading of weights."""

from typing import Any

from bdbnet.models.backbones import (
    Backbone,
    FastReIDBackbone,
    FeatureMap,
    ImageSizeError,
    OSNetBackbone,
    ResNetBackbone,
    TimmBackbone,
    TimmEncoder,
    TorchvisionBackbone,
    as_feature_map,
)
from bdbnet.models.bdb import BDBNetwork
from bdbnet.models.drop_layers import BatchDropBlock, BatchDropout, DropBlock, Dropout, SpatialDropout
from bdbnet.models.formats import Format, known_format
from bdbnet.models.heads import BranchOutput, FeatureDroppingBranch, GlobalBranch
from bdbnet.models.mgn import MGNNetwork
from bdbnet.models.network import EmbeddingNetwork, MapLayer
from bdbnet.models.pcb import PCBNetwork
from bdbnet.models.pretrained import PooledNetwork, TimmNetwork, timm_network, torchvision_network
from bdbnet.models.recognition import Architecture, recognise
from bdbnet.models.released import load_released_bdb
from bdbnet.models.timm_files import timm_format, timm_weights_in
from bdbnet.models.weights import CheckpointError, initialize_from, load_network, read_checkpoint, read_state_dict
from bdbnet.renamed import TARGETS, former_attribute

__all__ = [
    "Architecture",
    "BDBNetwork",
    "Backbone",
    "BatchDropBlock",
    "BatchDropout",
    "BranchOutput",
    "CheckpointError",
    "DropBlock",
    "Dropout",
    "EmbeddingNetwork",
    "FastReIDBackbone",
    "FeatureDroppingBranch",
    "FeatureMap",
    "Format",
    "GlobalBranch",
    "ImageSizeError",
    "MGNNetwork",
    "MapLayer",
    "OSNetBackbone",
    "PCBNetwork",
    "PooledNetwork",
    "ResNetBackbone",
    "SpatialDropout",
    "TimmBackbone",
    "TimmEncoder",
    "TimmNetwork",
    "TorchvisionBackbone",
    "as_feature_map",
    "initialize_from",
    "known_format",
    "load_network",
    "load_released_bdb",
    "read_checkpoint",
    "read_state_dict",
    "recognise",
    "timm_format",
    "timm_network",
    "timm_weights_in",
    "torchvision_network",
]


def __getattr__(name: str) -> Any:
    return former_attribute(__name__, name, {former.rpartition(".")[2]: today for former, today in TARGETS.items()})
