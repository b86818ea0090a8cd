"""Relevance from the language model's first attention layer, against what that layer computes in a forward of the whole
prompt; in every family, in batches, with several pictures and clips."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tiny
from families import FAMILIES, IMAGE, VIDEO, mixed, model_of, prompts, row_alone
from fsr import FSR, RelevanceError, prepare, prune
from fsr.methods import HAWK, CDPruner, Relevance
from fsr.pipeline.encode import encode
from fsr.signals.attention import projections
from fsr.signals.embedding import EmbeddingRelevance
from fsr.signals.first_layer import FirstLayerRelevance, head_scores, weighted_heads
from fsr.signals.text_projections import text_projections

METHOD = FSR(keep=4)
UNGIVEN = object()


class Numbers:
    """A tokenizer of hand-made prompts: texts are token numbers."""

    chat_template = None
    all_special_tokens: tuple[str, ...] = ()

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return SimpleNamespace(input_ids=[int(word) for word in text.split()])


def scored(model, inputs, questions, relevance="first-layer", method=METHOD):
    report = prepare(model, method, inputs, questions, processor=Numbers(), relevance=relevance).report
    return report, [s.relevance for s in report.selections]


def asked(rows):
    """What stands at the end of each row of `prompts`."""
    return [" ".join(map(str, range(30, 34 + i))) for i in range(rows)]


@torch.no_grad()
def first_layer_states(model, inputs):
    """Queries [B, S, H, d] and keys [B, S, H_k, d] of the first attention layer in an unpruned forward, not rotated."""
    project = text_projections(model)
    seen = {}
    hooks = [
        module.register_forward_hook(lambda m, a, out, part=part: seen.__setitem__(part, out))
        for part, module in projections(project.attention).items()
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    rows, columns = inputs["input_ids"].shape

    def by_column(out):
        if out.dim() == 4 and out.shape[2] == columns:  # Gemma norms [B, H, S, d]
            out = out.transpose(1, 2)
        return out.reshape(rows, columns, -1, project.width)

    return by_column(seen["q"]), by_column(seen["k"])


def naive(queries, keys):
    """[T, H, d] and [N, H_k, d] to [H, N], one number at a time."""
    heads, shared = queries.shape[1], keys.shape[1]
    rows = torch.zeros(heads, len(keys))
    for h in range(heads):
        for v in range(len(keys)):
            products = [queries[t, h] @ keys[v, h // (heads // shared)] for t in range(len(queries))]
            rows[h, v] = sum(products) / len(queries) / queries.shape[-1] ** 0.5
    return torch.stack([row / row.square().sum().sqrt() for row in rows])


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (6, 1)])
def test_rows_of_heads(heads, shared):
    torch.manual_seed(0)
    queries, keys = torch.randn(3, heads, 8), torch.randn(7, shared, 8)
    rows = head_scores(queries, keys)
    assert torch.allclose(rows, naive(queries, keys), atol=1e-6)
    assert torch.allclose(rows.norm(dim=-1), torch.ones(heads))
    weights = torch.randn(heads).tolist()
    expected = sum(w * r for w, r in zip(weights, rows))
    assert torch.allclose(weighted_heads(rows, weights), expected, atol=1e-6)
    assert torch.allclose(weighted_heads(rows), rows.mean(0))
    for bad in ([1.0] * (heads + 1), [0.0] * heads, [float("nan")] * heads):
        with pytest.raises(RelevanceError, match="head weights"):
            weighted_heads(rows, bad)


# Llama 4 shows no list of layers and is refused, Gemma 3n has no saliency for FSR to read (see below).
READ = [name for name in FAMILIES if name not in ("llama4", "gemma3n")]


@pytest.mark.parametrize("name", READ)
def test_equals_the_models_own_first_layer(name):
    """Paired with the right tokens, in the right length, for several pictures of several rows, and clips."""
    model = model_of(name)
    rows = mixed(name)
    inputs = prompts(name, rows)
    project = text_projections(model)
    report, scores = scored(model, inputs, asked(len(rows)))
    assert report.relevance == "first-layer"
    others = scored(model, inputs, ["30"] * len(rows))[1]
    for selection, score, other in zip(report.selections, scores, others, strict=True):
        assert score.shape == (selection.total,) and score.isfinite().all() and score.dtype == torch.float32
        assert not torch.allclose(score, other, atol=1e-3)
    if project.index > 0:  # hybrid stacks: no forward gives embeddings to a later layer
        return
    queries, keys = first_layer_states(model, inputs)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    at = {row: 0 for row in range(len(rows))}
    for selection, row, score in zip(report.selections, report.rows, scores):
        where = ((ids[row] == IMAGE) | (ids[row] == VIDEO)).nonzero()[:, 0]
        columns = where[at[row] : at[row] + selection.total]
        at[row] += selection.total
        patch = selection.geometry.tile >= 0
        words = (mask[row] == 1).nonzero()[-(4 + row) :, 0]
        assert ids[row, words].tolist() == list(range(30, 34 + row))
        expected = naive(queries[row, words].float(), keys[row, columns][patch].float()).mean(0)
        assert (score[patch] - expected).abs().max() < 1e-5
        assert not score[~patch].any()


@pytest.mark.parametrize("name", READ)
def test_a_row_alone_scores_the_same(name):
    model, rows = model_of(name), mixed(name)
    together = scored(model, prompts(name, rows), asked(3))
    alone = scored(model, row_alone(name, rows, 1), asked(3)[1])
    mine = [s for s, row in zip(together[1], together[0].rows) if row == 1]
    for a, b in zip(mine, alone[1], strict=True):
        assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llava", "qwen3-vl", "gemma3"])
def test_half_precision(name, dtype):
    exact = scored(model_of(name), prompts(name, [(1, 0)]), asked(1))[1][0]
    model = copy.deepcopy(model_of(name)).to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in prompts(name, [(1, 0)]).items()}
    score = scored(model, inputs, asked(1))[1][0]
    assert score.dtype == torch.float32 and (score - exact).abs().max() < 0.1 * exact.abs().max()


class Int8(nn.Module):
    """A linear layer without a float weight."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("packed", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.packed * self.scale, self.bias)


class LowRank(nn.Module):
    """LoRA as PEFT wraps it."""

    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear
        self.lora_A = nn.Linear(linear.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))

    def merged(self):
        linear = copy.deepcopy(self.base_layer)
        linear.weight.data += self.lora_B.weight @ self.lora_A.weight
        return linear


def offload(module):
    """Weights on no device but during the call, as accelerate keeps them."""
    kept = {name: p.data for name, p in module.named_parameters()}

    def bring(m, args):
        for name, value in kept.items():
            setattr(m, name, nn.Parameter(value))

    def take(m, args, out):
        for name in kept:
            setattr(m, name, nn.Parameter(kept[name].to("meta")))

    take(module, None, None)
    module.register_forward_pre_hook(bring)
    module.register_forward_hook(take)


def test_weights_are_used_through_their_modules():
    inputs = prompts("qwen2.5-vl", [(1, 0)])
    exact = scored(model_of("qwen2.5-vl"), inputs, asked(1))[1][0]
    model = copy.deepcopy(model_of("qwen2.5-vl"))
    project = text_projections(model)
    attention = project.attention
    plain = attention.q_proj, attention.k_proj
    attention.q_proj, attention.k_proj = map(Int8, plain)
    rounded = scored(model, inputs, asked(1))[1][0]
    assert 0 < (rounded - exact).abs().max() < 0.05
    torch.manual_seed(1)
    attention.q_proj, attention.k_proj = adapted = [LowRank(m) for m in plain]
    tuned = scored(model, inputs, asked(1))[1][0]
    attention.q_proj, attention.k_proj = (m.merged() for m in adapted)
    merged = scored(model, inputs, asked(1))[1][0]
    assert (tuned - merged).abs().max() < 1e-5 < (tuned - exact).abs().max()
    attention.q_proj, attention.k_proj = plain
    # The embedding tells `prune` which device the prompt is on: only what the signal alone calls is taken off it.
    for module in (attention.q_proj, attention.k_proj, project.norm):
        offload(module)
    assert torch.equal(scored(model, inputs, asked(1))[1][0], exact)


def test_hybrid_stacks_take_the_first_layer_with_attention():
    config = pytest.importorskip("transformers.models.qwen3_5").configuration_qwen3_5.Qwen3_5TextConfig
    from transformers import AutoModel

    torch.manual_seed(0)
    text = AutoModel.from_config(
        config(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2,
            linear_key_head_dim=8, linear_value_head_dim=8, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    model = SimpleNamespace(get_decoder=lambda: text, get_input_embeddings=lambda: text.embed_tokens)
    project = text_projections(model)
    assert project.index == 3 and project.attention is text.layers[3].self_attn
    seen = {}
    for part, module in projections(project.attention).items():
        module.register_forward_hook(lambda m, a, out, part=part: seen.__setitem__(part, out[0]))
    with torch.no_grad():
        words = project.embed([3, 4, 5])
        queries, keys = project.queries(words), project.keys(words)
        ones = torch.ones(1, 3, 4)
        project.attention(project.norm(words[None]), position_embeddings=(ones, 0 * ones), attention_mask=None)
    assert queries.shape == (3, 4, 16) and keys.shape == (3, 2, 16)
    assert torch.equal(queries, seen["q"]) and torch.equal(keys, seen["k"])


def test_a_method_of_its_own_beside_the_text_tower(llava, single, words):
    """HAWK reads the first layer though this family has a text tower, and pictures encoded for that tower serve it."""
    from fsr import ClipTwin

    twin = ClipTwin.from_clip(tiny.clip(tower=llava.model.vision_tower), words, sign=-1)
    question = "where is the dog ?"
    seen = encode(llava, single, METHOD, HAWK(keep=4), relevance=twin)
    hawk = prepare(llava, HAWK(keep=4), single, question, processor=words).report
    shared = prepare(llava, HAWK(keep=4), single, question, processor=words, encoded=seen, relevance="first-layer")
    assert hawk.relevance == "first-layer" and torch.equal(hawk.selections[0].rows, shared.report.selections[0].rows)
    top = hawk.selections[0].relevance.topk(4).indices.sort().values
    assert torch.equal(hawk.selections[0].rows, top)
    fsr = prepare(llava, METHOD, single, question, encoded=seen).report
    assert fsr.relevance == twin.source
    assert torch.equal(
        prepare(llava, METHOD, single, question, relevance=twin).report.selections[0].rows, fsr.selections[0].rows
    )


@pytest.fixture(scope="module")
def words():
    return tiny.word_tokenizer(ends=True, longest=16)


def test_a_copied_model_is_asked_with_its_own_weights():
    """Otherwise a deep copy would score with the original."""
    inputs = prompts("qwen2.5-vl", [(1, 0)])
    model = copy.deepcopy(model_of("qwen2.5-vl"))
    for relevance in ("first-layer", "embedding"):
        with prune(model, METHOD, processor=Numbers(), relevance=relevance):
            twin = copy.deepcopy(model)
            scales = torch.linspace(-1, 1, 64)[: twin.config.text_config.hidden_size]
            twin.get_input_embeddings().weight.data.mul_(scales)
            pruner = twin.__dict__["_fsr_pruner"]
            twin(**inputs, question=asked(1)[0])  # a copy ends with the block of its original
        expected = scored(twin, inputs, asked(1), relevance)[1][0]
        assert torch.equal(pruner.last.selections[0].relevance, expected)
        assert not torch.allclose(expected, scored(model, inputs, asked(1), relevance)[1][0], atol=1e-3)


def test_equal_settings_are_equal():
    """Pictures encoded with relevance='first-layer' are asked with relevance='first-layer'."""
    model, inputs = model_of("qwen3-vl"), prompts("qwen3-vl", [(1, 0)])
    seen = encode(model, inputs, METHOD, relevance="first-layer")
    a, b = (
        prepare(model, METHOD, inputs, asked(1), processor=Numbers(), relevance=r, encoded=seen).report
        for r in ("first-layer", "auto")
    )
    assert a.relevance == b.relevance == "first-layer"
    assert torch.equal(a.selections[0].rows, b.selections[0].rows)
    assert FirstLayerRelevance(model) == FirstLayerRelevance(model) != FirstLayerRelevance(model, (1.0,) * 4)


def test_refusals():
    inputs = prompts("qwen2.5-vl", [(1, 0)])
    model = copy.deepcopy(model_of("qwen2.5-vl"))

    def refuse(words, relevance="first-layer", processor=UNGIVEN, question="30"):
        processor = Numbers() if processor is UNGIVEN else processor
        with pytest.raises(RelevanceError, match=words):
            prepare(model, METHOD, inputs, question, processor=processor, relevance=relevance)

    refuse("pass processor=", processor=None)
    refuse("'first-layer', 'embedding'", relevance="last-layer")
    refuse("9 head weights for a first layer of 4 heads", relevance=FirstLayerRelevance(model, (1.0,) * 9))
    refuse("another model", relevance=FirstLayerRelevance(model_of("qwen2.5-vl")))
    attention = text_projections(model).attention
    keep = attention.k_proj
    for layer in model.get_decoder().layers:
        layer.self_attn.plain_k, layer.self_attn.k_proj = layer.self_attn.k_proj, None
    refuse("fused, shared or missing")
    for layer in model.get_decoder().layers:
        layer.self_attn.k_proj = layer.self_attn.q_proj
    refuse("fused, shared or missing")
    for layer in model.get_decoder().layers:
        layer.self_attn.k_proj = layer.self_attn.plain_k
    attention.k_proj = nn.Linear(keep.in_features, 3 * attention.head_dim)
    refuse("4 heads of .* cannot share")
    attention.k_proj = keep
    attention.q_proj, whole = nn.Linear(keep.in_features, attention.head_dim), attention.q_proj
    refuse("split over processes")
    attention.q_proj = whole
    whole.weight.data = whole.weight.data[:0]
    refuse("split over processes")
    attention.strange_norm = nn.Identity()
    refuse(r"norms not known here \(strange_norm\)")
    with pytest.raises(RelevanceError, match="use 1 or -1"):
        EmbeddingRelevance(model.get_input_embeddings(), sign=0)
    with pytest.raises(RelevanceError, match="cannot do without"):
        prepare(model_of("qwen2.5-vl"), Relevance(keep=3), inputs, "30", relevance="none")


def test_families_that_fsr_cannot_read_it_with():
    """Refused in one line; a method that reads relevance alone runs where there is no saliency."""
    if "llama4" in FAMILIES:
        with pytest.raises(RelevanceError, match="no list of decoder layers"):
            scored(model_of("llama4"), prompts("llama4", [(1, 0)]), asked(1))
    if "gemma3n" in FAMILIES:
        model, inputs = model_of("gemma3n"), prompts("gemma3n", [(1, 0)])
        report, scores = scored(model, inputs, asked(1), method=CDPruner(keep=2))
        assert report.relevance == "first-layer" and report.tokens_after == 2 and scores[0].isfinite().all()
