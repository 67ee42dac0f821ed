"""Backbones: networks from images to a feature map."""

from bdbnet.models.backbones.base import Backbone, FeatureMap, ImageSizeError, as_feature_map
from bdbnet.models.backbones.fast_reid import FastReIDBackbone
from bdbnet.models.backbones.osnet import OSNetBackbone
from bdbnet.models.backbones.resnet import ResNetBackbone
from bdbnet.models.backbones.timm import TimmBackbone, TimmEncoder
from bdbnet.models.backbones.torchvision import TorchvisionBackbone

__all__ = [
    "Backbone",
    "FastReIDBackbone",
    "FeatureMap",
    "ImageSizeError",
    "OSNetBackbone",
    "ResNetBackbone",
    "TimmBackbone",
    "TimmEncoder",
    "TorchvisionBackbone",
    "as_feature_map",
]
