"""The networks of docs/networks.md, each with the side of its square input."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from amc.zoo import create_model
from amc.zoo._torchvision import import_torchvision
from network_libraries import SEGMENTATION as OF_SEGMENTATION
from network_libraries import TRANSFORMERS, of_segmentation, of_transformers
from tests.structure import nets  # on the path once `common` is imported

models = import_torchvision().models  # before timm, which imports torchvision plainly
timm = importlib.import_module("timm")

TORCHVISION = {
    "alexnet": 224, "vgg16_bn": 64, "resnet18": 64, "resnet50": 64, "wide_resnet50_2": 64, "resnext50_32x4d": 64,
    "densenet121": 64, "squeezenet1_1": 64, "googlenet": 96, "inception_v3": 128, "mobilenet_v2": 96,
    "mobilenet_v3_small": 96, "mobilenet_v3_large": 96, "efficientnet_b0": 96, "efficientnet_v2_s": 64,
    "shufflenet_v2_x1_0": 96, "mnasnet1_0": 96, "regnet_x_400mf": 64, "regnet_y_400mf": 64, "convnext_tiny": 64,
    "vit_b_16": 224, "vit_b_32": 224, "swin_t": 224, "maxvit_t": 224, "vgg11": 64, "vgg13_bn": 64, "vgg19_bn": 64,
    "resnet34": 64, "resnet101": 64, "wide_resnet101_2": 64, "resnext101_32x8d": 64, "densenet161": 64,
    "densenet169": 64, "squeezenet1_0": 64, "mnasnet0_5": 96, "mnasnet1_3": 96, "shufflenet_v2_x0_5": 96,
    "shufflenet_v2_x2_0": 96, "regnet_x_1_6gf": 64, "regnet_y_1_6gf": 64, "regnet_y_8gf": 64, "efficientnet_b1": 96,
    "efficientnet_b3": 96, "efficientnet_v2_m": 64, "convnext_small": 64, "swin_v2_t": 256,
}  # fmt: skip
SEGMENTATION = {
    "fcn_resnet50": 64, "deeplabv3_resnet50": 64, "deeplabv3_mobilenet_v3_large": 96, "lraspp_mobilenet_v3_large": 96,
    "fcn_resnet101": 64, "deeplabv3_resnet101": 64,
}  # fmt: skip
DETECTION = {
    "backbone of fasterrcnn_resnet50_fpn": 64, "backbone of retinanet_resnet50_fpn": 64,
    "backbone of fasterrcnn_mobilenet_v3_large_fpn": 96, "backbone of ssd300_vgg16": 300,
    "backbone of ssdlite320_mobilenet_v3_large": 96, "backbone of maskrcnn_resnet50_fpn_v2": 64,
    "backbone of keypointrcnn_resnet50_fpn": 64, "backbone of retinanet_resnet50_fpn_v2": 64,
    "backbone of fcos_resnet50_fpn": 64,
}  # fmt: skip
VIDEO = {"r3d_18": 32, "mc3_18": 32, "r2plus1d_18": 32}
TIMM = {
    "vit_small_patch16_224": 224, "deit_small_patch16_224": 224, "swin_tiny_patch4_window7_224": 224,
    "beit_base_patch16_224": 224, "mixer_s32_224": 224, "resmlp_12_224": 224, "poolformer_s12": 64,
    "convnext_atto": 64, "inception_next_tiny": 64, "visformer_tiny": 224, "botnet26t_256": 256,
    "resnet50d": 64, "seresnet50": 64, "skresnet18": 64, "res2net50_26w_4s": 64, "resnest14d": 64, "dla34": 64,
    "hrnet_w18_small": 64, "cspresnet50": 64, "cspdarknet53": 64, "darknet53": 64, "dpn68": 64, "xception41": 96,
    "inception_v4": 128, "ese_vovnet19b_dw": 64, "selecsls42b": 64, "tresnet_m": 64, "gernet_s": 64, "regnetz_b16": 64,
    "ghostnet_100": 64, "rexnet_100": 64, "tinynet_a": 64, "lcnet_050": 64, "mobilenetv1_100": 64,
    "mobilenetv4_conv_small": 64, "repvgg_a0": 64, "mobileone_s0": 64, "repvit_m0_9": 64, "starnet_s1": 64,
    "fasternet_t0": 64, "efficientformer_l1": 224, "nf_resnet50": 64, "efficientnet_lite0": 64, "mixnet_s": 64,
    "fbnetc_100": 64, "spnasnet_100": 64, "semnasnet_100": 64, "hardcorenas_a": 64, "tf_efficientnetv2_b0": 64,
    "vovnet39a": 64, "ecaresnet26t": 64, "gcresnet33ts": 64, "resnetv2_18d": 64, "seresnext26d_32x4d": 64,
    "hgnetv2_b0": 64, "repghostnet_050": 64, "convmixer_768_32": 64, "edgenext_xx_small": 64, "mobilevit_xxs": 64,
    "levit_128s": 224, "pit_ti_224": 224, "gmlp_s16_224": 224, "convformer_s18": 64, "mambaout_femto": 64,
    "fastvit_t8": 64, "efficientvit_b0": 64, "efficientvit_m0": 224, "shvit_s1": 64, "swiftformer_xs": 64,
    "rdnet_tiny": 64, "hiera_tiny_224": 224, "tiny_vit_5m_224": 224, "cait_xxs24_224": 224, "davit_tiny": 64,
    "pvt_v2_b0": 64, "twins_svt_small": 224, "xcit_nano_12_p16_224": 224, "eva02_tiny_patch14_224": 224,
    "mvitv2_tiny": 224, "focalnet_tiny_srf": 64, "caformer_s18": 64, "crossvit_9_240": 240, "convit_tiny": 224,
    "nest_tiny": 224, "coat_tiny": 224, "volo_d1_224": 224,
}  # fmt: skip
ULTRALYTICS = {  # where that package is installed
    "yolov5n": 64, "yolov8n": 64, "yolov8n-seg": 64, "yolov8n-pose": 64, "yolov8n-cls": 64, "yolov9t": 64,
    "yolov10n": 64, "yolo11n": 64, "yolo12n": 64, "yolo26n": 64,
}  # fmt: skip
ZOO = {
    "resnet20": 32,
    "resnet56": 32,
    "resnet110": 32,
    "resnet50_cifar": 32,
    "mobilenet_v2_cifar": 32,
    "plain20": 32,
    "vgg16_050": 32,
    "mobilenet_v1": 32,
    "digits_cnn": 8,
}
OWN = ("unet", "yolo", "keyword_spotter", "text_encoder")

NETWORKS: dict[str, int] = {
    **TORCHVISION,
    **SEGMENTATION,
    **DETECTION,
    **VIDEO,
    **{f"timm/{name}": size for name, size in TIMM.items()},
    **{f"ultralytics/{name}": size for name, size in ULTRALYTICS.items()},
    **{f"transformers/{name}": 0 for name in TRANSFORMERS},
    **{f"segmentation/{name}": 64 for name in OF_SEGMENTATION},
    **{f"zoo/{name}": size for name, size in ZOO.items()},
    **{f"tests/{name}": 0 for name in OWN},
}


def create(name: str, size: int | None = None) -> tuple[nn.Module, Any]:
    """The network in eval mode with random weights, and an example input (an image of this side, or other data)."""
    side = size or NETWORKS[name]
    source, _, short = name.rpartition("/")
    if source == "tests":
        made, example = getattr(nets, short)()
        return made.eval(), example
    if source == "transformers":
        return of_transformers(short)
    shape = (1, 1, side, side) if short == "digits_cnn" else (1, 3, side, side)
    if name in VIDEO:
        shape = (1, 3, 8, side, side)  # type: ignore[assignment]
    return _model(name, source, short).eval(), torch.randn(shape)


def _model(name: str, source: str, short: str) -> nn.Module:
    bare = {"weights": None, "weights_backbone": None}
    made: Any
    if source == "timm":
        made = timm.create_model(short, pretrained=False)
    elif source == "ultralytics":
        made = importlib.import_module("ultralytics").YOLO(f"{short}.yaml", verbose=False).model.float()
    elif source == "segmentation":
        made = of_segmentation(short)
    elif source == "zoo":
        made = create_model(short)
    elif name in DETECTION:
        factory: Callable[..., Any] = getattr(models.detection, name.removeprefix("backbone of "))
        made = factory(**bare).backbone
    elif name in SEGMENTATION:
        made = getattr(models.segmentation, name)(**bare)
    elif name in VIDEO:
        made = getattr(models.video, name)(weights=None)
    else:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        made = getattr(models, name)(weights=None, **options)
    module: nn.Module = made
    return module
