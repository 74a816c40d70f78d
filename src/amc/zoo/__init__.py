"""The paper's networks, and the data to prune them on."""

from amc.zoo.data import load_data
from amc.zoo.images import Augmentation, FolderSet, ImageSet, Normalisation
from amc.zoo.models import ModelInfo, create_model, load_weights, model_info, model_names
from amc.zoo.splits import DataSplits, splits_from_mapping

__all__ = [
    "Augmentation",
    "DataSplits",
    "FolderSet",
    "ImageSet",
    "ModelInfo",
    "Normalisation",
    "create_model",
    "load_data",
    "load_weights",
    "model_info",
    "model_names",
    "splits_from_mapping",
]
