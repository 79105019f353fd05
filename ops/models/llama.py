"""A Llama for training on CPUs: bfloat16 throughout, and a loss that never keeps float32 logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.models.shape import Shape


class Llama(nn.Module):
    """A decoder whose parameters carry Hugging Face's names, head tied to the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Decoder(shape)

    def forward(self, token_ids: Tensor) -> Tensor:
        """The mean loss of predicting token_ids[:, 1:], int64 [batch, length], in nats a token."""
        hidden = self.model(token_ids[:, :-1])
        loss: Tensor = TiedHeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden.flatten(0, 1), self.model.embed_tokens.weight, token_ids[:, 1:].flatten()
        )
        return loss


class Decoder(nn.Module):
    """Embedding, layers and the last norm: int64 [batch, length] to [batch, length, hidden]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        cos, sin = rotary_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """The last norm's output, of the embedding's dtype."""
        length = token_ids.shape[1]
        hidden: Tensor = self.embed_tokens(token_ids)
        cos, sin = self.cos[:length], self.sin[:length]
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        return self.norm(hidden)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and the gated feed-forward, each behind a norm and beside a residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Both sublayers' outputs added to hidden, [batch, length, hidden]."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        query_size = shape.num_heads * shape.head_dim
        kv_size = shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Each position's mix of what it and earlier ones say, [batch, length, hidden]."""
        heads = (*hidden.shape[:2], -1, self.head_dim)
        query = rotate(self.q_proj(hidden).view(heads).transpose(1, 2), cos, sin)
        key = rotate(self.k_proj(hidden).view(heads).transpose(1, 2), cos, sin)
        value = self.v_proj(hidden).view(heads).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """The SwiGLU feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Position by position, [batch, length, hidden]."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))  # type: ignore[no-any-return]


def rotary_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines, bfloat16 [max_position, head_dim], halves repeated as in GPT-NeoX."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    positions = torch.arange(shape.max_position, dtype=torch.float32)
    angles = torch.outer(positions, shape.rope_theta**-exponents).repeat(1, 2)
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [batch, heads, length, head_dim] by its positions' angles."""
    left, right = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-right, left), dim=-1) * sin


class TiedHeadLoss(torch.autograd.Function):
    """Cross-entropy behind the tied head, its gradient formed in the logits' own memory.

    The usual way keeps float32 logits, their log-softmax and both gradients: on CPUs that costs
    as much time as all layers of a small model together.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        """hidden [tokens, size], weight [vocabulary, size], targets int64 [tokens]; a scalar."""
        probs = torch.softmax(hidden @ weight.T, dim=-1)
        index = targets.unsqueeze(1)
        chosen = probs.gather(1, index)
        probs.scatter_(1, index, chosen - 1)
        ctx.save_for_backward(hidden, weight, probs)
        return -chosen.float().clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        """Gradients for hidden and weight."""
        hidden, weight, slope = ctx.saved_tensors
        scale = (upstream / len(hidden)).to(hidden.dtype)
        return slope @ weight * scale, slope.T @ hidden * scale, None
