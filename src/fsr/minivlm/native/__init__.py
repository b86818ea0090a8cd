"""The second embedded model, `mini-qwen3`: pictures at native resolution, merged patches, M-RoPE, DeepStack."""
