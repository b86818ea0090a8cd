"""Table 7 of the FSR paper to every printed digit, the other papers' formulas, and the true-size configs."""

from __future__ import annotations

import csv
import re
from io import StringIO

import pytest
import torch

from fsr.errors import UsageError
from fsr.profiling.configs import CONFIGS, named
from fsr.profiling.conventions import FULL, PRESETS, preset, table7, twin_of
from fsr.profiling.counts import count
from fsr.profiling.decoder import language
from fsr.profiling.visual import visual

# The paper's Table 7: method, tokens, FLOPs (T), MACs (T), KV cache (MB).
PRINTED = """vanilla,576,9.042,4.521,288.0
fastv,64,3.610,1.800,32.1
vispruner,64,2.277,1.138,32.0
cdpruner,64,2.293,1.146,32.0
fsr,64,2.291,1.145,32.0
"""


def test_table_7_to_every_printed_digit() -> None:
    rows = {row.method: row for row in table7()}
    for method, tokens, flops, macs, kv in csv.reader(StringIO(PRINTED)):
        row = rows[method]
        assert (row.tokens, row.printed) == (int(tokens), (float(flops), float(macs), float(kv)))
        if method in ("vanilla", "vispruner", "fsr"):
            assert row.shown == (flops, macs, kv) and row.follows
    assert {m for m, row in rows.items() if not row.follows} == {"fastv", "cdpruner"}
    assert rows["fastv"].shown == ("2.269", "1.134", "32.1") and "does not follow" in rows["fastv"].remark


def test_a_row_that_is_off_by_one_digit_does_not_follow() -> None:
    row = table7()[0]
    assert not type(row)(row.method, row.tokens, (9.043, 4.521, 288.0), row.computed, "").follows


@pytest.mark.parametrize(
    ("name", "expected"),
    [("paper-fastv", (2.986, 0.976, 0.649, 0.323)), ("paper-sparsevlm", (3.817, 1.253, 0.833, 0.416))],
)
def test_llm_only_conventions(name: str, expected: tuple[float, ...]) -> None:
    config = named("llava-1.5-7b")
    picture, d, m, layers = visual(config), 4096, 11008, 32
    for n, tera in zip((576, 192, 128, 64), expected):
        counts = count(config, picture, kept=n, convention=preset(name))
        matrices = 2 if name == "paper-fastv" else 3
        assert counts.flops == layers * (4 * n * d * d + 2 * n * n * d + matrices * n * d * m)
        assert round(counts.flops / 1e12, 3) == tera
        assert counts.kv_bytes == n * 2**19


def test_full_counts_what_runs() -> None:
    config = named("llava-1.5-7b")
    counts = count(config, visual(config), kept=64, text=80, convention=FULL)
    assert counts.macs["lm_head"] == 4096 * 32064
    assert counts.kv_bytes == 144 * 2**19
    assert counts.flops == 2 * counts.total_macs
    assert counts.llm_macs + counts.macs["vision_tower"] + counts.macs["projector"] == counts.total_macs
    assert counts.as_dict()["visual_tokens"] == 64


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match="paper-table7"):
        preset("paper")
    with pytest.raises(UsageError, match=r"llava-1\.5-7b"):
        named("llava")
    assert set(PRESETS) == {"full", "paper-table7", "paper-fastv", "paper-sparsevlm"}


# Parameters in billions as the checkpoints' model cards and index files state them; a wrong size would show here.
BILLIONS = {
    "llava-1.5-7b": 7.063,
    "llava-1.5-13b": 13.351,
    "llava-onevision-7b": 8.030,
    "qwen2-vl-7b": 8.291,
    "qwen2.5-vl-3b": 3.755,
    "qwen2.5-vl-7b": 8.292,
    "qwen3-vl-2b": 2.128,
    "qwen3-vl-8b": 8.767,
    "qwen3-vl-30b-a3b": 31.071,
    "gemma-3-4b": 4.300,
    "paligemma-3b-224": 2.923,
}


# E4B is named for what runs of it; its model card says 8 with the embeddings.
NAMED = {"gemma-4-e4b": 8.0}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_true_size_configs_build_with_as_many_parameters_as_the_checkpoints(name: str) -> None:
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(named(name))
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    if name in BILLIONS:
        assert round(billions, 3) == BILLIONS[name]
    else:  # the name's number; towers may come on top of it, heads for several next tokens are not built
        said = NAMED.get(name) or float(re.findall(r"(\d+(?:\.\d+)?)[bB]\b", CONFIGS[name].checkpoint)[0])
        assert said * 0.98 < billions < said * 1.05


@pytest.mark.parametrize("name", [name for name in CONFIGS if re.search(r"-a\d+b$", name)])
def test_mixtures_run_as_many_parameters_per_token_as_their_name_says(name: str) -> None:
    llm = language(named(name))
    active = sum(layer.linear(llm.width) for layer in llm.stack) + llm.width * llm.vocabulary
    assert active / 1e9 == pytest.approx(int(name[-2]), rel=0.12)


TOKENS = {
    "llava-1.5-7b": 576,
    "llava-next-7b": 5 * 576 + 48,
    "llava-onevision-7b": 729 + 54 * 55,
    "qwen2.5-vl-7b": 576,
    "qwen3-vl-8b": 441,
    "qwen3-vl-2b": 441,
    "qwen3.5-9b": 441,
    "internvl3-8b": 256,
    "gemma-3-4b": 256,
    "gemma-4-31b": 256,
    "mistral-small-3": 576,
    "smolvlm2-2.2b": 81,
}


def test_visual_tokens_of_a_672_pixel_picture() -> None:
    assert {name: visual(named(name)).tokens for name in TOKENS} == TOKENS
    assert visual(named("llava-onevision-7b"), frames=32).tokens == 32 * 196 + 1
    assert visual(named("llava-next-video-7b"), frames=8).tokens == 8 * 144


def test_every_config_can_be_counted() -> None:
    for name in CONFIGS:
        config = named(name)
        picture = visual(config)
        counts = count(config, picture)
        assert all(counts.macs[p] > 0 for p in ("vision_tower", "projector", "llm_linear", "llm_attention", "lm_head"))
        assert 0 < count(config, picture, kept=1).kv_bytes < counts.kv_bytes
        assert (twin_of(config) is None) == (not name.startswith("llava-") or "onevision" in name)
