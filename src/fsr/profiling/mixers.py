"""What moves information between tokens in one decoder layer, and what it costs: softmax attention, or the gated delta
rule of Qwen3.5.

Costs are multiply-accumulates (MACs). Both kinds answer the same three questions: what the linear maps around them take
per token, what mixing n tokens takes, and what they leave in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Attention", "GatedDelta"]

# Length of the pieces in which the gated delta rule runs over a prompt (Transformers' and flash-linear-attention's).
CHUNK = 64
# Its state stays in float32, whatever the dtype of the model.
STATE_BYTES = 4


@dataclass(frozen=True)
class Attention:
    """Softmax attention.

    kv_heads: fewer than heads with grouped queries. query_maps: 2 where a gate as wide as the queries is projected too
    (Qwen3.5). kv_maps: 2 for keys and values, 1 where values are the keys (Gemma 4), 0 where both are those of an
    earlier layer. window: tokens that a sliding window sees, None for all.
    """

    heads: int
    head_dim: int
    kv_heads: int
    query_maps: int = 1
    kv_maps: int = 2
    window: int | None = None

    def projections(self, width: int) -> int:
        """MACs of q, k, v, o and gate for one token."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return width * ((self.query_maps + 1) * q + self.kv_maps * kv)

    def mixing(self, tokens: int, queries: int | None = None) -> int:
        """MACs of q k^T and p v over `tokens` keys. Neither causality nor the window is exploited: masked products are
        computed all the same by eager and sdpa kernels."""
        return 2 * self.heads * self.head_dim * tokens * (tokens if queries is None else queries)

    @property
    def values(self) -> int:
        """Numbers that the cache holds per token."""
        return 2 * self.kv_heads * self.head_dim if self.kv_maps else 0

    def cached(self, tokens: int) -> int:
        """Tokens that the cache keeps of `tokens`: a window of w keeps w - 1, for the next token is the w-th."""
        return tokens if self.window is None else min(tokens, self.window - 1)

    def cache_bytes(self, tokens: int, bytes_per_value: int) -> int:
        """Bytes in the cache after a prompt of `tokens`."""
        return self.cached(tokens) * self.values * bytes_per_value


@dataclass(frozen=True)
class GatedDelta:
    """Gated DeltaNet (arXiv 2412.06464): a state [key_dim, value_dim] per value head instead of a growing cache.

    kernel: taps of the causal convolution in front of q, k and v.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    @property
    def channels(self) -> int:
        """Width of q, k and v together, which the convolution runs over."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def projections(self, width: int) -> int:
        """MACs of q, k, v, output gate, decay, learning rate and output map for one token."""
        v = self.value_heads * self.value_dim
        return width * (self.channels + v + 2 * self.value_heads + v)

    def mixing(self, tokens: int, queries: int | None = None) -> int:
        """MACs of the convolution and of the chunked rule, as Transformers' own code runs them.

        The convolution is padded on both sides, the prompt to whole chunks. Per chunk of c tokens and value head: two
        products k k^T and q k^T, two triangular systems (c (c - 1) / 2 MACs per column), three products with the state
        and one inside the chunk. torch's FlopCounterMode does not see triangular systems; the tests give it the
        formula. Linear in the prompt; there is no shorter way for fewer `queries`.
        """
        chunks, c, k, v = -(-tokens // CHUNK), CHUNK, self.key_dim, self.value_dim
        products = c * c * (2 * k + v) + 3 * c * k * v
        systems = c * (c - 1) // 2 * (k + v)
        convolution = (tokens + self.kernel - 1) * self.kernel * self.channels
        return convolution + chunks * self.value_heads * (products + systems)

    def cache_bytes(self, tokens: int, bytes_per_value: int) -> int:
        """Bytes of the state and of the last inputs of the convolution: the same for every prompt."""
        state = self.value_heads * self.key_dim * self.value_dim * STATE_BYTES
        return state + self.channels * self.kernel * bytes_per_value
