"""Architectures of timm, chosen for how different they are, with random weights."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from fxfuse.coverage.entry import Entry
from fxfuse.models_zoo.zoo import Input

MODELS = {
    64: """
        beit_base_patch16_224 pvt_v2_b0 focalnet_tiny_srf efficientvit_b0 mobilevit_xxs mobilevitv2_050
        edgenext_xx_small poolformer_s12 fastvit_t8 repvit_m0_9 mambaout_femto convnext_atto convnextv2_atto
        inception_next_atto convmixer_768_32 hrnet_w18_small dla34 res2net50_26w_4s resnetv2_50x1_bit resnest14d
        seresnet18 skresnet18 ecaresnet26t gcresnet33ts tresnet_m nfnet_l0 dm_nfnet_f0 repvgg_a0 mobileone_s0
        vovnet39a ese_vovnet19b_dw selecsls42 rexnet_100 dpn48b densenet121 cspdarknet53 cspresnet50 xception41
        ghostnet_100 tf_efficientnet_b0 tf_mixnet_s mobilenetv4_conv_small lcnet_050 fbnetc_100 hardcorenas_a
        hgnet_tiny starnet_s1 rdnet_tiny regnetz_005
    """,
    96: """
        vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 cait_xxs24_224
        xcit_nano_12_p16_224 inception_v4 legacy_xception nasnetalarge
    """,
    98: """
        eva02_tiny_patch14_224
    """,
    224: """
        swin_tiny_patch4_window7_224 twins_svt_small pit_ti_224 tnt_s_patch16_224 coat_tiny mvitv2_tiny levit_128s
        volo_d1_224 visformer_tiny nest_tiny davit_tiny gcvit_xxtiny hiera_tiny_224 tiny_vit_5m_224
        coatnet_pico_rw_224 efficientformer_l1 swiftformer_xs mixer_s32_224 resmlp_12_224 gmlp_ti16_224
        sequencer2d_s
    """,
    240: """
        crossvit_tiny_240
    """,
    256: """
        swinv2_tiny_window8_256 maxvit_pico_rw_256 botnet26t_256 halonet26t lambda_resnet26t lamhalobotnet50ts_256
        bat_resnext26ts
    """,
}
"""Names by the side of the input: that of the pretrained model where the architecture ties itself to it."""
FAST = {"vit_tiny_patch16_224", "convnext_atto", "ghostnet_100", "mobilevit_xxs", "lcnet_050", "pvt_v2_b0"}
_SIZED = ("vit_", "deit", "beit", "eva02", "cait", "xcit")
"""Families whose position tables are made for one size: it is given when they are built."""


def entries() -> Iterator[Entry]:
    """The rows."""
    for name, side in ((name, side) for side, names in MODELS.items() for name in names.split()):
        options = {"img_size": side} if name.startswith(_SIZED) else {}
        note = f"for images of side {side}" if options else ""
        build = partial(_build, name, **options)
        yield Entry(name, "timm", build, (Input((3, side, side)),), note=note, fast=name in FAST)


def _build(name: str, **options: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model
