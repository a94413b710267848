"""all-MiniLM-L6-v2: a six-layer BERT encoder, mean pooling over the tokens, unit-length sentence embeddings.

Modules are named as in the published checkpoint, so that its weights load strictly.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

_VOCABULARY = 30_522
_POSITIONS = 512
_TOKEN_TYPES = 2
_WIDTH = 384
_INNER_WIDTH = 1536
_HEADS = 12
_LAYERS = 6
_LAYER_NORM_EPSILON = 1e-12


def build_model() -> nn.Module:
    """Return the encoder without weights: they are on the meta device until a checkpoint is assigned."""
    with torch.device("meta"):
        return SentenceEncoder()


class SentenceEncoder(nn.Module):
    """Token ids to one embedding per sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = Encoder()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed sentences.

        Args:
            input_ids: int64 [batch, sequence], sequence at most 512.
            attention_mask: int64 [batch, sequence], 0 where a token is padding. A row of zeros embeds to zeros.

        Returns:
            float [batch, 384], each row of unit length.
        """
        present = attention_mask != 0
        hidden = self.encoder(self.embeddings(input_ids), present)
        weights = present.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return functional.normalize(mean, dim=1)


class Embeddings(nn.Module):
    """Token, position and segment embeddings, summed and normalised. Every token is of segment 0."""

    def __init__(self) -> None:
        super().__init__()
        # Not nn.Embedding(rows, width): its normal_() imports two seconds of decompositions on the meta device.
        self.word_embeddings = nn.Embedding.from_pretrained(torch.empty(_VOCABULARY, _WIDTH))
        self.position_embeddings = nn.Embedding.from_pretrained(torch.empty(_POSITIONS, _WIDTH))
        self.token_type_embeddings = nn.Embedding.from_pretrained(torch.empty(_TOKEN_TYPES, _WIDTH))
        self.LayerNorm = nn.LayerNorm(_WIDTH, eps=_LAYER_NORM_EPSILON)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map [batch, sequence] to [batch, sequence, width]."""
        positions = self.position_embeddings.weight[: input_ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0] + positions)


class Encoder(nn.Module):
    """The stack of layers, and the mask in the form that attention takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(_LAYERS))

    def forward(self, hidden: Tensor, present: Tensor) -> Tensor:
        """Map [batch, sequence, width] to the same; `present` is boolean [batch, sequence]."""
        # The lowest finite score rather than -inf: a row that is all padding stays finite, in every engine alike.
        lowest = torch.finfo(hidden.dtype).min
        bias = torch.zeros_like(present, dtype=hidden.dtype).masked_fill(~present, lowest)[:, None, None, :]
        for layer in self.layer:
            hidden = layer(hidden, bias)
        return hidden


class Layer(nn.Module):
    """Self-attention, then a two-layer perceptron; each is added to its input and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = nn.Sequential(OrderedDict(dense=nn.Linear(_WIDTH, _INNER_WIDTH), gelu=nn.GELU()))
        self.output = ResidualNorm(_INNER_WIDTH)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Map [batch, sequence, width] to the same; for `bias` see SelfAttention."""
        hidden = self.attention(hidden, bias)
        return self.output(self.intermediate(hidden), hidden)


class Attention(nn.Module):
    """Self-attention with its residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.self = SelfAttention()
        self.output = ResidualNorm(_WIDTH)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Map [batch, sequence, width] to the same; for `bias` see SelfAttention."""
        return self.output(self.self(hidden, bias), hidden)


class SelfAttention(nn.Module):
    """Every token attends to every token, in twelve heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(_WIDTH, _WIDTH)
        self.key = nn.Linear(_WIDTH, _WIDTH)
        self.value = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Map [batch, sequence, width] to the same; `bias` is added to the scores: [batch, 1, 1, sequence]."""
        query, key, value = (
            projection(hidden).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return attended.transpose(1, 2).flatten(-2)


class ResidualNorm(nn.Module):
    """Project back to the model's width, add the residual, normalise."""

    def __init__(self, inner_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner_width, _WIDTH)
        self.LayerNorm = nn.LayerNorm(_WIDTH, eps=_LAYER_NORM_EPSILON)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Map [..., inner width], with a residual of [..., width], to [..., width]."""
        return self.LayerNorm(self.dense(hidden) + residual)
