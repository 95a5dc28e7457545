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
_TEXT = _BERT | {"pad_token_id": 0}
_BART: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 50,
}  # fmt: skip
_DEBERTA: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
_XLNET: dict[str, Any] = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": 50}
_OPT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "vocab_size": 50,
    "max_position_embeddings": 40, "word_embed_proj_dim": 32,
}  # fmt: skip
_FUNNEL: dict[str, Any] = {
    "d_model": 32,
    "n_head": 4,
    "d_head": 8,
    "d_inner": 48,
    "vocab_size": 50,
    "block_sizes": [1, 1],
}
_MOBILEBERT: dict[str, Any] = {
    "embedding_size": 24, "intra_bottleneck_size": 16, "true_hidden_size": 16, "num_feedforward_networks": 2,
}  # fmt: skip
_SEGFORMER: dict[str, Any] = {
    "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4],
    "decoder_hidden_size": 32,
}  # fmt: skip
_MOBILEVIT: dict[str, Any] = {
    "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
}  # fmt: skip
_TOKENS = Input((12,), vocabulary=50)
_PIXELS = Input((3, 32, 32))
_LARGER = Input((3, 64, 64))
_SOUND = Input((800,))

MODELS: tuple[tuple[str, str, dict[str, Any], str, Input], ...] = (
    ("BertForSequenceClassification", "BertConfig", _BERT, "input_ids", _TOKENS),
    ("BertForMaskedLM", "BertConfig", _BERT, "input_ids", _TOKENS),
    ("BertModel", "BertConfig", _BERT, "input_ids", _TOKENS),
    ("DistilBertForSequenceClassification", "DistilBertConfig", _DISTIL, "input_ids", _TOKENS),
    ("RobertaForSequenceClassification", "RobertaConfig", _BERT | {"pad_token_id": 0}, "input_ids", _TOKENS),
    ("GPT2LMHeadModel", "GPT2Config", _GPT2, "input_ids", _TOKENS),
    ("T5EncoderModel", "T5Config", _T5, "input_ids", _TOKENS),
    ("T5ForConditionalGeneration", "T5Config", _T5, "input_ids decoder_input_ids", _TOKENS),
    ("LlamaForCausalLM", "LlamaConfig", _LLAMA, "input_ids", _TOKENS),
    ("ViTForImageClassification", "ViTConfig", _VISION, "pixel_values", _PIXELS),
    ("SwinForImageClassification", "SwinConfig", _SWIN, "pixel_values", _PIXELS),
    (
        "ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1]},
        "pixel_values", _PIXELS,
    ),
    ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", _WAV2VEC2, "input_values", _SOUND),
    ("AlbertForSequenceClassification", "AlbertConfig", _TEXT | {"embedding_size": 24}, "input_ids", _TOKENS),
    ("DebertaV2ForSequenceClassification", "DebertaV2Config", _TEXT | _DEBERTA, "input_ids", _TOKENS),
    ("ElectraForSequenceClassification", "ElectraConfig", _TEXT | {"embedding_size": 24}, "input_ids", _TOKENS),
    ("FunnelForSequenceClassification", "FunnelConfig", _FUNNEL, "input_ids", _TOKENS),
    ("MobileBertForSequenceClassification", "MobileBertConfig", _TEXT | _MOBILEBERT, "input_ids", _TOKENS),
    ("ModernBertForSequenceClassification", "ModernBertConfig", _TEXT | {"cls_token_id": 1, "sep_token_id": 2}
     | {"bos_token_id": 1, "eos_token_id": 2}, "input_ids", _TOKENS),
    ("MPNetForSequenceClassification", "MPNetConfig", _TEXT, "input_ids", _TOKENS),
    ("XLNetForSequenceClassification", "XLNetConfig", _XLNET, "input_ids", _TOKENS),
    ("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50}, "input_ids",
     _TOKENS),
    ("FalconForCausalLM", "FalconConfig", _TEXT, "input_ids", _TOKENS),
    ("Gemma2ForCausalLM", "Gemma2Config", _LLAMA | {"head_dim": 8}, "input_ids", _TOKENS),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT, "input_ids", _TOKENS),
    ("MambaForCausalLM", "MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 4},
     "input_ids", _TOKENS),
    ("MistralForCausalLM", "MistralConfig", _LLAMA, "input_ids", _TOKENS),
    ("MixtralForCausalLM", "MixtralConfig", _LLAMA | {"num_local_experts": 3}, "input_ids", _TOKENS),
    ("OPTForCausalLM", "OPTConfig", _OPT, "input_ids", _TOKENS),
    ("PhiForCausalLM", "PhiConfig", _TEXT, "input_ids", _TOKENS),
    ("Qwen3ForCausalLM", "Qwen3Config", _LLAMA | {"head_dim": 8}, "input_ids", _TOKENS),
    ("BeitForImageClassification", "BeitConfig", _VISION, "pixel_values", _PIXELS),
    ("CLIPVisionModel", "CLIPVisionConfig", _VISION, "pixel_values", _PIXELS),
    ("DeiTForImageClassification", "DeiTConfig", _VISION, "pixel_values", _PIXELS),
    ("Dinov2ForImageClassification", "Dinov2Config", _VISION, "pixel_values", _PIXELS),
    ("MobileViTForImageClassification", "MobileViTConfig", _MOBILEVIT, "pixel_values", _LARGER),
    ("SegformerForSemanticSegmentation", "SegformerConfig", _SEGFORMER, "pixel_values", _LARGER),
    ("SiglipVisionModel", "SiglipVisionConfig", _VISION, "pixel_values", _PIXELS),
    ("HubertForSequenceClassification", "HubertConfig", _WAV2VEC2, "input_values", _SOUND),
    ("WhisperForAudioClassification", "WhisperConfig", _BART | {"num_mel_bins": 16, "max_source_positions": 20},
     "input_features", Input((16, 40))),
)  # fmt: skip
FAST = {"BertForSequenceClassification", "GPT2LMHeadModel"}


def entries() -> Iterator[Entry]:
    """The rows."""
    for name, config, options, argument, taken in MODELS:
        build = partial(_build, name, config, options)
        note = "two small layers"
        names = tuple(argument.split())
        yield Entry(name, "transformers", build, (taken,) * len(names), names, note=note, fast=name in FAST)


def _build(name: str, config: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**options))
    return model
