"""Runs methods inside the language model: forward pre-hooks on the decoder layers of one model instance. Knows no
method and no family.

Prefill: in front of a drop layer the method sees one picture at a time and the other columns go, from hidden states,
mask and rotary embeddings of that layer and all later ones, and so from their KV caches. Later steps: only masks are
cut (see `columns`). Attention rows come from the outputs of the layer's own q and k projections.

Threads may share the model: data of one call lives in a context variable, data of one prompt on its KV cache.
"""

from fsr.pipeline.in_llm.hooks import InLLMHooks

__all__ = ["InLLMHooks"]
