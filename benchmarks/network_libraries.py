"""Networks of transformers and of segmentation_models_pytorch for docs/networks.md, small and with random weights."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768}
TEXT = {
    **WIDTH,
    "vocab_size": 1000,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE = {**WIDTH, "image_size": 64, "patch_size": 8}
STAGES = {"hidden_sizes": [32, 64, 128, 192], "depths": [2, 2, 2, 2]}
SPEECH = {**WIDTH, "conv_dim": [64, 64, 64], "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2], "vocab_size": 30}
SEQUENCES = {
    "d_model": 192, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 768, "decoder_ffn_dim": 768,
}  # fmt: skip
DETECTION = {
    **SEQUENCES,
    "num_queries": 10,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}

# Name of the network -> name of the configuration, its options, what the network is given.
TRANSFORMERS: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "BertForSequenceClassification": ("BertConfig", TEXT, "text"),
    "RobertaForTokenClassification": ("RobertaConfig", TEXT, "text"),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig", {"dim": 192, "n_layers": 4, "n_heads": 6, "hidden_dim": 768, "vocab_size": 1000}, "text"
    ),
    "ElectraForSequenceClassification": ("ElectraConfig", TEXT, "text"),
    "ModernBertForSequenceClassification": (
        "ModernBertConfig", {**TEXT, "cls_token_id": 1, "sep_token_id": 2}, "text"
    ),
    "DebertaV2ForSequenceClassification": ("DebertaV2Config", TEXT, "text"),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 192, "n_layer": 4, "n_head": 6, "vocab_size": 1000}, "decoder"),
    "LlamaForCausalLM": ("LlamaConfig", {**TEXT, "num_key_value_heads": 3}, "decoder"),
    "Qwen3ForCausalLM": ("Qwen3Config", {**TEXT, "num_key_value_heads": 2, "head_dim": 32}, "decoder"),
    "Gemma2ForCausalLM": ("Gemma2Config", {**TEXT, "num_key_value_heads": 3, "head_dim": 32}, "decoder"),
    "T5EncoderModel": (
        "T5Config",
        {"d_model": 192, "d_kv": 32, "d_ff": 768, "num_layers": 4, "num_heads": 6, "vocab_size": 1000},
        "ids",
    ),
    "BartForConditionalGeneration": ("BartConfig", {**SEQUENCES, "vocab_size": 1000}, "both"),
    "ViTForImageClassification": ("ViTConfig", IMAGE, "image"),
    "DeiTForImageClassification": ("DeiTConfig", IMAGE, "image"),
    "Dinov2ForImageClassification": ("Dinov2Config", IMAGE, "image"),
    "SwinForImageClassification": (
        "SwinConfig",
        {"image_size": 64, "embed_dim": 48, "depths": [2, 2], "num_heads": [3, 6], "window_size": 4},
        "image",
    ),
    "ConvNextV2ForImageClassification": ("ConvNextV2Config", STAGES, "image"),
    "MobileViTForImageClassification": ("MobileViTConfig", {"image_size": 64}, "image"),
    "PvtV2ForImageClassification": (
        "PvtV2Config", {**STAGES, "num_attention_heads": [1, 2, 4, 6], "image_size": 64}, "image"
    ),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig", {**STAGES, "num_attention_heads": [1, 2, 4, 6], "decoder_hidden_size": 96}, "image"
    ),
    "UperNetForSemanticSegmentation": ("UperNetConfig", {"hidden_size": 64, "use_auxiliary_head": False}, "image"),
    "DetrForObjectDetection": ("DetrConfig", DETECTION, "image"),
    "RTDetrForObjectDetection": (
        "RTDetrConfig",
        {
            "encoder_hidden_dim": 96, "encoder_in_channels": [64, 128, 192], "encoder_ffn_dim": 384, "backbone": None,
            "encoder_attention_heads": 6, "decoder_in_channels": [96, 96, 96], "d_model": 96, "decoder_layers": 2,
            "decoder_attention_heads": 6, "decoder_ffn_dim": 384, "num_queries": 10, "num_denoising": 0,
        },
        "image",
    ),
    "YolosForObjectDetection": ("YolosConfig", {**IMAGE, "image_size": [64, 64], "num_detection_tokens": 8}, "image"),
    "Wav2Vec2ForSequenceClassification": ("Wav2Vec2Config", SPEECH, "wave"),
    "WhisperForAudioClassification": (
        "WhisperConfig", {**SEQUENCES, "num_mel_bins": 16, "max_source_positions": 32, "vocab_size": 1000}, "mel"
    ),
    "PatchTSTForPrediction": (
        "PatchTSTConfig",
        {"d_model": 96, "num_attention_heads": 6, "ffn_dim": 384, "num_input_channels": 3, "context_length": 64},
        "series",
    ),
}  # fmt: skip
BACKBONES = {  # of networks that have one of transformers' own: the configuration's name and options
    "UperNetConfig": ("ConvNextConfig", {**STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]}),
    "DetrConfig": ("ResNetConfig", {**STAGES, "embedding_size": 32, "layer_type": "basic", "out_features": ["stage4"]}),
    "RTDetrConfig": (
        "RTDetrResNetConfig",
        {**STAGES, "embedding_size": 32, "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]},
    ),
}
SEGMENTATION = {  # of segmentation_models_pytorch, where that package is installed: the network and its encoder
    "Unet": "resnet18", "UnetPlusPlus": "resnet18", "FPN": "resnet34", "Linknet": "resnet18", "PSPNet": "resnet18",
    "MAnet": "mobilenet_v2", "DeepLabV3": "resnet18", "DeepLabV3Plus": "efficientnet-b0", "UPerNet": "resnet18",
    "Segformer": "mit_b0",
}  # fmt: skip


def of_transformers(name: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network of this name, and an example for it."""
    library = importlib.import_module("transformers")
    config, options, kind = TRANSFORMERS[name]
    if config in BACKBONES:
        backbone, its = BACKBONES[config]
        options = {**options, "backbone_config": getattr(library, backbone)(**its)}
    model: nn.Module = getattr(library, name)(getattr(library, config)(**options))
    return model.eval(), _example(kind)


def _example(kind: str) -> Mapping[str, Any]:
    def ids(length: int) -> Tensor:
        return torch.randint(3, 1000, (1, length))

    examples: dict[str, Mapping[str, Any]] = {
        "text": {"input_ids": ids(24), "attention_mask": torch.ones(1, 24, dtype=torch.long)},
        "ids": {"input_ids": ids(24)},
        "decoder": {"input_ids": ids(24), "attention_mask": torch.ones(1, 24, dtype=torch.long), "use_cache": False},
        "both": {"input_ids": ids(24), "decoder_input_ids": ids(8), "use_cache": False},
        "image": {"pixel_values": torch.randn(1, 3, 64, 64)},
        "wave": {"input_values": torch.randn(1, 800)},
        "mel": {"input_features": torch.randn(1, 16, 64)},
        "series": {"past_values": torch.randn(1, 64, 3)},
    }
    return examples[kind]


def of_segmentation(name: str) -> nn.Module:
    """The network of this name, without its sigmoid or softmax."""
    library = importlib.import_module("segmentation_models_pytorch")
    model: nn.Module = getattr(library, name)(encoder_name=SEGMENTATION[name], encoder_weights=None, classes=3)
    return model
