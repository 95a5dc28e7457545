# mypy: disable-error-code="no-any-return"
# ruff: noqa: D102
# (torch types a module's call as Any, and forward is documented by its class: these files read as users write models.)
"""Networks over tokens: recurrent, attention in several packings, mixers and gated perceptrons.

Token indices are below 11, sequences have 7 tokens, real-valued tokens have 10 features, images are 3x16x16.
``width`` is the width of the residual stream or of the recurrent state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 11
LENGTH = 7


class LSTMClassifier(nn.Module):
    """Embedding, two LSTM layers, head on the last step."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width + 2)
        self.lstm = nn.LSTM(width + 2, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(tokens))
        return self.head(x[:, -1])


class GRUClassifier(nn.Module):
    """A bidirectional GRU, head on the final states of both directions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        _, state = self.gru(self.embedding(tokens))
        return self.head(torch.cat([state[0], state[1]], dim=-1))


class TransformerClassifier(nn.Module):
    """``nn.TransformerEncoder`` (post-norm, as it comes) over embedded tokens, mean over tokens, head."""

    def __init__(self, width: int = 16, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, heads, dim_feedforward=2 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.positions(positions)
        return self.head(self.encoder(x).mean(dim=1))


class MixerLayer(nn.Module):
    """An MLP over tokens, then one over channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 10), nn.GELU(), nn.Linear(10, tokens))
        self.norm2 = nn.LayerNorm(width)
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer on 4x4 patches."""

    def __init__(self, width: int = 12, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.layers = nn.Sequential(*[MixerLayer(16, width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.layers(x)).mean(dim=1))


class PackedAttention(nn.Module):
    """Query, key and value from one linear layer, packed (3, heads, head width): ``reshape(B, N, 3, H, D)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)
        y = weights.softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(B, N, C))


class HeadMajorAttention(nn.Module):
    """The same, packed (heads, 3, head width) as in GPT-NeoX, causal, through the fused attention function."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.each = width // heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.query_key_value(x).view(x.size(0), x.size(1), self.heads, 3 * self.each).transpose(1, 2)
        q, k, v = qkv.split(self.each, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.permute(0, 2, 1, 3).contiguous().view(x.size(0), -1, self.heads * self.each)
        return self.dense(y)


class RMSNorm(nn.Module):
    """Root-mean-square norm spelt out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class SwiGLU(nn.Module):
    """Gated MLP, value and gate from one linear layer by ``chunk``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, 2 * hidden, bias=False)
        self.leave = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.enter(x).chunk(2, dim=-1)
        return self.leave(F.silu(gate) * value)


class PackedQKV(nn.Module):
    """Two pre-norm layers of :class:`PackedAttention` on real-valued tokens, with layer scale and a class token."""

    def __init__(self, width: int = 12, heads: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(10, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, LENGTH + 1, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(depth)])
        self.attention = nn.ModuleList([PackedAttention(width, heads) for _ in range(depth)])
        self.gammas = nn.ParameterList([nn.Parameter(torch.full((width,), 0.1)) for _ in range(depth)])
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self.pos_embed
        for norm, attention, gamma in zip(self.norms, self.attention, self.gammas, strict=True):
            x = x + gamma * attention(norm(x))
        return self.head(x[:, 0])


class LanguageModel(nn.Module):
    """Causal language model with tied embedding, RMS norm, head-major packing and SwiGLU: logits per token."""

    def __init__(self, width: int = 12, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.norm1 = nn.ModuleList([RMSNorm(width) for _ in range(depth)])
        self.attention = nn.ModuleList([HeadMajorAttention(width, heads) for _ in range(depth)])
        self.norm2 = nn.ModuleList([nn.RMSNorm(width) for _ in range(depth)])
        self.mlp = nn.ModuleList([SwiGLU(width, 2 * width) for _ in range(depth)])
        self.norm = RMSNorm(width)
        self.unembed = nn.Linear(width, VOCABULARY, bias=False)
        self.unembed.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for norm1, attention, norm2, mlp in zip(self.norm1, self.attention, self.norm2, self.mlp, strict=True):
            x = x + attention(norm1(x))
            x = x + mlp(norm2(x))
        return self.unembed(self.norm(x))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, then norm and MLP with channels last, layer scale, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(y))))
        y = (self.gamma * y).permute(0, 3, 1, 2)
        return x + y


class ConvNeXt(nn.Module):
    """Two channels-last blocks behind a patch stem."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, stride=2)
        self.blocks = nn.Sequential(ConvNeXtBlock(width), ConvNeXtBlock(width))
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(x.flatten(2).mean(-1))


class GatedMLP(nn.Module):
    """Residual SwiGLU and GLU layers on vectors."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.enter = nn.Linear(20, width)
        self.norm = RMSNorm(width)
        self.swiglu = SwiGLU(width, width + 4)
        self.glu = nn.Sequential(nn.Linear(width, 2 * width), nn.GLU(dim=-1))
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.swiglu(self.norm(x))
        x = x + self.glu(x)
        return self.head(x)
