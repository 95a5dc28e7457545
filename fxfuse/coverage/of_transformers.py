"""Families of Hugging Face transformers in small configurations, with random weights."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from fxfuse.coverage.entry import Entry
from fxfuse.models_zoo.zoo import Input

_BERT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50,
    "max_position_embeddings": 40,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48,
}  # fmt: skip
_DISTIL: dict[str, Any] = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 50, "max_position_embeddings": 40,
}  # fmt: skip
_GPT2: dict[str, Any] = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 40, "pad_token_id": 0,
}  # fmt: skip
_T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 50}
_SWIN: dict[str, Any] = {
    "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 50, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
_WAV2VEC2: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 20,
    "conv_dim": [16, 16, 16], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3], "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16,
}  # fmt: skip
_TOKENS = Input((12,), vocabulary=50)
_PIXELS = Input((3, 32, 32))
_SOUND = Input((800,))

MODELS: tuple[tuple[str, str, dict[str, Any], str, Input], ...] = (
    ("BertForSequenceClassification", "BertConfig", _BERT, "input_ids", _TOKENS),
    ("BertForMaskedLM", "BertConfig", _BERT, "input_ids", _TOKENS),
    ("BertModel", "BertConfig", _BERT, "input_ids", _TOKENS),
    ("DistilBertForSequenceClassification", "DistilBertConfig", _DISTIL, "input_ids", _TOKENS),
    ("RobertaForSequenceClassification", "RobertaConfig", _BERT | {"pad_token_id": 0}, "input_ids", _TOKENS),
    ("GPT2LMHeadModel", "GPT2Config", _GPT2, "input_ids", _TOKENS),
    ("T5EncoderModel", "T5Config", _T5, "input_ids", _TOKENS),
    ("LlamaForCausalLM", "LlamaConfig", _LLAMA, "input_ids", _TOKENS),
    ("ViTForImageClassification", "ViTConfig", _VISION, "pixel_values", _PIXELS),
    ("SwinForImageClassification", "SwinConfig", _SWIN, "pixel_values", _PIXELS),
    (
        "ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
        "pixel_values", _PIXELS,
    ),
    ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", _WAV2VEC2, "input_values", _SOUND),
)  # fmt: skip
FAST = {"BertForSequenceClassification", "GPT2LMHeadModel"}


def entries() -> Iterator[Entry]:
    """The rows."""
    for name, config, options, argument, taken in MODELS:
        build = partial(_build, name, config, options)
        note = "two small layers"
        yield Entry(name, "transformers", build, (taken,), (argument,), note=note, fast=name in FAST)


def _build(name: str, config: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**options))
    return model
