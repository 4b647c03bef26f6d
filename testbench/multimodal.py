"""Tiny random models that take images, of families whose language model is one that is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from testbench.families import GAIN, SIZES

PIXELS, PATCH = 56, 14
IMAGE_TOKEN = 3
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": PIXELS,
    "patch_size": PATCH,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llava": {
        "model_type": "llava",
        "text": {"model_type": "llama"},
        "vision": {"model_type": "clip_vision_model", **VISION},
        "own": {"image_token_index": IMAGE_TOKEN, "vision_feature_layer": -1},
        "words": {"image_token": "<image>"},
        "marks": ([], []),
    },
    "Qwen2.5-VL": {
        "model_type": "qwen2_5_vl",
        "text": {
            "model_type": "qwen2_5_vl_text",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
        },
        "vision": {
            "model_type": "qwen2_5_vl_vision",
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 256,
            "patch_size": PATCH,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1],
        },
        "own": {
            "image_token_id": IMAGE_TOKEN,
            "video_token_id": 4,
            "vision_start_token_id": 5,
            "vision_end_token_id": 6,
        },
        "words": {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
        "marks": ([5], [6]),
    },
}
"""What each is made of: options of its language model, of its vision tower, its own, the words of
its tokenizer that stand for images, and the tokens before and after one."""


def make_multimodal_model(folder: Path, family: dict[str, Any]) -> Path:
    """A random model with its tokenizer and image processor."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {**SIZES, **family["text"]}
    text["hidden_size"] = text["head_dim"] * text["num_attention_heads"]
    config = AutoConfig.for_model(
        family["model_type"],
        text_config=text,
        vision_config=family["vision"],
        tie_word_embeddings=False,
        **family["own"],
    )
    torch.manual_seed(5)
    model: Any = AutoModelForImageTextToText.from_config(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                gain = 1.0 if "embed_tokens" in name else GAIN * weight[0].numel() ** -0.5
                weight.normal_(0.0, gain)
    model.save_pretrained(folder)
    if family["model_type"] == "llava":  # as published checkpoints name it
        path = folder / "model.safetensors"
        weights = {
            name.replace("vision_tower.", "vision_tower.vision_model."): weight
            for name, weight in load_file(path).items()
        }
        save_file(weights, path, {"format": "pt"})
    make_processor(family).save_pretrained(folder)
    return folder


def make_processor(family: dict[str, Any]) -> Any:
    """What makes pixels and token ids of images and text."""
    import transformers

    from testbench.words import word_tokenizer

    special = family["words"]
    tokenizer = word_tokenizer(
        [*special.values()],
        SIZES["vocab_size"],
        additional_special_tokens=[*special.values()],
    )
    for name, word in special.items():
        setattr(tokenizer, name, word)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(word))
    if family["model_type"] == "llava":
        pixels = {"height": PIXELS, "width": PIXELS}
        return transformers.LlavaProcessor(
            transformers.CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=pixels),
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    return transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(
            patch_size=PATCH, min_pixels=PATCH**2 * 4, max_pixels=PIXELS**2
        ),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(patch_size=PATCH),
    )
