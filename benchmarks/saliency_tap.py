"""What the saliency tap costs: CLIP ViT-L/14-336 (577 x 1024, random weights) alone and with its second-to-last layer
read.

    python benchmarks/saliency_tap.py [--dtype float32] [--rounds 9] [--device cpu] [--json]

Two numbers, because a difference of two noisy times says little: `direct` times the tap's own work (the hooks run
inside the
tower, what they keep is read after it); `paired` is the median over rounds of (with tap - without) / without. The
bar: 3 %.
On the CPU both count processor time, not the wall clock: other programs on the machine would be measured otherwise.
A dispatch mode also watches the largest tensor that the tap makes: no N x N map of all heads may be among them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from time import perf_counter, process_time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionModel
from transformers.initialization import no_init_weights

from fsr.device import synchronise
from fsr.profiling.configs import named
from fsr.profiling.random_weights import fill
from fsr.signals.attention import cls_attention
from fsr.signals.tap import record_layers

BAR = 0.03


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation inside returns."""

    seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.seen = max(self.seen, value.numel())
        return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, help="a tower of fewer layers, to try the script")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    config = named("llava-1.5-7b").vision_config
    config._attn_implementation = "sdpa"
    config.num_hidden_layers = args.layers or config.num_hidden_layers
    with torch.device(device), no_init_weights():
        tower = CLIPVisionModel(config)
    fill(tower)
    tower = tower.to(dtype).eval()
    pixels = torch.randn(1, 3, 336, 336, device=device, dtype=dtype)

    def clock() -> float:
        synchronise(device)
        return process_time() if device.type == "cpu" else perf_counter()

    def alone() -> float:
        began = clock()
        tower(pixels)
        return clock() - began

    def tapped() -> tuple[float, float]:
        began = clock()
        with record_layers(tower, [-2]) as states:
            tower(pixels)
            read = clock()
            layer = states(-2)
            cls_attention(layer.q, layer.k, layer.scale)
            ended = clock()
        return clock() - began, ended - read

    plain, whole, direct = [], [], []
    with torch.inference_mode():
        alone(), tapped()
        for i in range(args.rounds):
            for turn in (i % 2, 1 - i % 2):  # who goes first changes, or drift would favour one of them
                if turn:
                    plain.append(alone())
                    continue
                together, own = tapped()
                whole.append(together)
                direct.append(own)
        with record_layers(tower, [-2]) as states:
            tower(pixels)
            with Largest() as largest:
                layer = states(-2)
                cls_attention(layer.q, layer.k, layer.scale)

    median = lambda values: sorted(values)[len(values) // 2]
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    result = {
        "tower_ms": 1e3 * median(plain),
        "tap_ms": 1e3 * median(direct),
        "direct": median(direct) / median(plain),
        "paired": median([(w - p) / p for p, w in zip(plain, whole)]),
        "paired_lowest": min((w - p) / p for p, w in zip(plain, whole)),
        "paired_highest": max((w - p) / p for p, w in zip(plain, whole)),
        "bar": BAR,
        "largest_tensor_of_the_tap": largest.seen,
        "elements_of_one_attention_map": config.num_attention_heads * tokens * tokens,
        "rounds": args.rounds,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:32s} {value:.4g}" if isinstance(value, float) else f"{name:32s} {value}")
    return int(result["direct"] > BAR or largest.seen >= result["elements_of_one_attention_map"])


if __name__ == "__main__":
    sys.exit(main())
