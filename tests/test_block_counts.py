"""How many blocks well-known networks have: what a person would count."""

import pytest
import torch
import torchvision
from laws import NO_AXES, analysed

from fxfuse.models_zoo.zoo import ZOO
from fxfuse.passes.partition import partition
from fxfuse.passes.trace import trace

COUNTS = {
    "vgg11_bn": 11,
    "resnet18": 10,
    "convnext_tiny": 23,
    "mobilenet_v2": 20,  # stem, 17 inverted residuals of which 7 have no residual connection, head, classifier
    "mobilenet_v3_small": 15,  # 11 inverted residuals
    "efficientnet_b0": 19,  # 16 inverted residuals
    "shufflenet_v2_x0_5": 19,
    "regnet_y_400mf": 18,  # its first stage is one block: stages are no blocks all the same
    "squeezenet1_0": 11,  # stem, 8 fire modules, the last convolution, the mean behind it
    "googlenet": 13,  # 3 convolutions, 9 inception modules, classifier
    "mnasnet0_5": 21,  # 3 convolutions that stand in no block, 16 inverted residuals, head, classifier
}
SLOW_COUNTS = {
    "resnet50": (18, 64),
    "vit_b_16": (26, 224),
    "swin_t": (29, 224),
    "densenet121": (64, 64),  # stem, 58 dense layers, 3 transitions, the last norm, classifier
    "inception_v3": (17, 96),
    "mobilenet_v3_large": (19, 64),
}


def torchvision_levels(name, size=64):
    options = {"aux_logits": False, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    with torch.device("cpu"):
        network = torchvision.models.get_model(name, weights=None, **options).eval()
    return partition(trace(network, torch.randn(2, 3, size, size)), NO_AXES).levels


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_blocks_of_torchvision(name, count):
    assert len(torchvision_levels(name)) == count


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), SLOW_COUNTS.items())
def test_blocks_of_large_torchvision(name, expected):
    count, size = expected
    assert len(torchvision_levels(name, size)) == count


HUGGING_FACE = {
    "bert": 7,  # embeddings; attention and the two linear layers behind it, twice; pooler; classifier
    "t5": 5,
    "wav2vec2": 11,  # 3 convolutions, projection, positions, attention and linear layers twice, projector, classifier
    "gpt2": 6,
}


def hugging_face(name):
    hf = pytest.importorskip("transformers")
    common = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"input_ids": torch.randint(2, 50, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    if name == "bert":
        return hf.BertForSequenceClassification(hf.BertConfig(**common, vocab_size=50)), ids
    if name == "t5":
        config = hf.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)
        return hf.T5EncoderModel(config), ids
    if name == "gpt2":
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        config = hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16, **ends)
        return hf.GPT2LMHeadModel(config), ids
    convolutions = {"conv_dim": (8, 8, 8), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3)}
    positions = {"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = hf.Wav2Vec2Config(**common, **convolutions, **positions)
    return hf.Wav2Vec2ForSequenceClassification(config), {"input_values": torch.randn(2, 400)}


@pytest.mark.parametrize(("name", "count"), HUGGING_FACE.items())
def test_blocks_of_hugging_face(name, count):
    network, example = hugging_face(name)
    assert len(partition(trace(network.eval(), example), NO_AXES).levels) == count


ZOO_COUNTS = {
    "mlp": 3, "vgg11_bn": 9, "resnet20": 11, "resnet18": 10, "vit": 6, "unet": 12, "dense": 4, "mobile_se": 4,
    "lstm": 4, "two_outputs": 5, "transformer_encoder": 6,
}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), ZOO_COUNTS.items())
def test_blocks_of_the_zoo(name, count):
    assert len(analysed(name).partition.levels) == count


def test_the_zoo_is_pinned_by_names_that_exist():
    assert set(ZOO_COUNTS) <= set(ZOO)
