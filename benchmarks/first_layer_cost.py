"""What first-layer relevance costs beside the prefill of the pruned prompt: 7B models at true size, random weights.

One decoder layer is built (under 1 GB in float32) and run on the K + text tokens of a pruned prompt; the prefill is
that times the number of layers (vision tower and output head are left out, which makes the share larger than it is).
The signal is what `relevance="first-layer"` runs: the question's embeddings and queries, the keys of all N tokens.
Signal and layer run in turn; shares are medians of pairs. Times are processor time, which other programs disturb least:
give it one thread. Ends with 1 if a share is above 2 %.

OMP_NUM_THREADS=1 python benchmarks/first_layer_cost.py [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from fsr.signals.first_layer import FirstLayerRelevance

BAR = 2.0  # percent of the pruned prefill
TEXT, QUESTION = 45, 12  # tokens of template and question in the prompt; of the question alone
# name -> (decoder layer, rotary embedding, config, visual tokens N, budgets K)
MODELS: dict[str, tuple[Any, Any, Any, int, tuple[int, ...]]] = {
    "LLaVA-1.5-7B": (
        LlamaDecoderLayer,
        LlamaRotaryEmbedding,
        LlamaConfig(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_hidden_layers=32),
        576,
        (64, 128),
    ),
    "Qwen2.5-VL-7B": (
        Qwen2DecoderLayer,
        Qwen2RotaryEmbedding,
        Qwen2Config(
            hidden_size=3584,
            intermediate_size=18944,
            num_attention_heads=28,
            num_key_value_heads=4,
            num_hidden_layers=28,
        ),
        1296,
        (64, 259),
    ),
}


def milliseconds(run: Any) -> float:
    """Processor time of one run."""
    before = process_time()
    run()
    return 1e3 * (process_time() - before)


@torch.no_grad()
def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    """One row per budget."""
    layer_type, rotary_type, config, n, budgets = MODELS[name]
    config._attn_implementation = "sdpa"
    layer, rotary = layer_type(config, layer_idx=0).eval(), rotary_type(config)
    words = nn.Embedding(100, config.hidden_size)
    decoder = SimpleNamespace(layers=nn.ModuleList([layer]), config=config)
    model = SimpleNamespace(get_decoder=lambda: decoder, get_input_embeddings=lambda: words)
    tokenizer = lambda text, add_special_tokens: SimpleNamespace(input_ids=list(range(QUESTION)))
    scorer, features = FirstLayerRelevance(model, tokenizer=tokenizer), torch.randn(n, config.hidden_size)
    rows = []
    for keep in budgets:
        states = torch.randn(1, keep + TEXT, config.hidden_size)
        turned = rotary(states, torch.arange(keep + TEXT)[None])
        run_signal = partial(scorer, features, "?")
        run_layer = partial(layer, states, position_embeddings=turned, attention_mask=None)
        run_signal(), run_layer()
        pairs = [(milliseconds(run_signal), milliseconds(run_layer)) for _ in range(repeats)]
        shares = [100 * signal / (one * config.num_hidden_layers) for signal, one in pairs]
        rows.append(
            {
                "model": name,
                "visual_tokens": n,
                "keep": keep,
                "signal_ms": round(median(signal for signal, _ in pairs), 2),
                "prefill_ms": round(median(one for _, one in pairs) * config.num_hidden_layers, 1),
                "share_percent": round(median(shares), 2),
                "share_lowest": round(min(shares), 2),
                "share_highest": round(max(shares), 2),
            }
        )
    return rows


def main() -> int:
    """Print one line per model and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = [row for name in MODELS for row in measure(name, args.repeats)]
    for row in rows:
        print(
            f"{row['model']:14s} N {row['visual_tokens']:5d}  K {row['keep']:4d}  signal {row['signal_ms']:8.2f} ms  "
            f"prefill {row['prefill_ms']:9.1f} ms  share {row['share_percent']:.2f} % "
            f"({row['share_lowest']:.2f} to {row['share_highest']:.2f})"
        )
    if args.json:
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "device": platform.machine()}
        args.json.write_text(json.dumps({**machine, "bar_percent": BAR, "rows": rows}, indent=1) + "\n")
    return int(max(row["share_percent"] for row in rows) > BAR)


if __name__ == "__main__":
    sys.exit(main())
