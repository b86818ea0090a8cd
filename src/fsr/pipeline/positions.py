"""Position ids of a shortened batch, and rows that hold several packed prompts.

Transformers reads several prompts out of one row where positions start again and neither mask nor cache is given (or
where flash-attention's cumulative lengths say so). Kept positions have gaps, and gaps look the same to it. So one
prompt per row always gets a mask with its positions, and packed prompts are numbered anew one by one, without a mask.

B rows, L columns before, L' after, `source` [B, L'] as in `shorten`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fsr.adapters.base import Adapter
from fsr.errors import UsageError
from fsr.pipeline.shorten import gather, repacked_positions

__all__ = ["SPARSE", "packed_prompts", "place", "policy_of", "shorten_lengths"]

# With 1-D rotary positions, a prompt that keeps fewer than one visual token in so many keeps their old numbers, too
# (measured: docs/method.md, Positions).
SPARSE = 12
CUMULATIVE = ("cu_seq_lens_q", "cu_seq_lens_k")
LONGEST = ("max_length_q", "max_length_k")


def packed_prompts(inputs: Mapping[str, Any], ids: Tensor, mask: Tensor) -> Tensor | None:
    """Which of the prompts packed into its row each column belongs to, long [B, L]; None with one prompt per row.

    mask: [B, L], columns that count (padding has no order of positions).

    Raises:
        UsageError: cumulative lengths that do not describe one row.
    """
    ends = next((inputs[n] for n in CUMULATIVE if inputs.get(n) is not None), None)
    if ends is not None:
        if ids.shape[0] != 1 or int(ends[-1]) != ids.shape[1] or inputs.get("attention_mask") is not None:
            raise UsageError(
                "cu_seq_lens_q and cu_seq_lens_k can be shortened for one row without padding and mask: pack all "
                "prompts into one row, or give them as rows with an attention_mask."
            )
        columns = torch.arange(ids.shape[1], device=ids.device)
        return torch.searchsorted(ends[1:].to(columns), columns, right=True)[None] if len(ends) > 2 else None
    text = _text_row(inputs.get("position_ids"))
    if text is None or inputs.get("attention_mask") is not None:
        return None
    text = text.expand(ids.shape).to(mask.device)
    both = (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
    again = (text[:, 1:] <= text[:, :-1]) & both
    if not bool(again.any()):
        return None
    return torch.nn.functional.pad(again.long().cumsum(-1), (1, 0))


def policy_of(
    adapter: Adapter,
    wanted: str,
    inputs: Mapping[str, Any],
    packed: Tensor | None,
    counts: Iterable[tuple[int, int, int]],
) -> tuple[str, tuple[int, ...]]:
    """How rows are numbered: "repack" or "original" for all, or "mixed" and the rows that are numbered anew.

    wanted: "repack", "original" or "auto". counts: row, tokens kept and tokens there of every picture. A row decides
    for itself: what else is in the batch makes no difference.

    Raises:
        UsageError: packed prompts cannot keep their numbers with 1-D positions.
    """
    family = adapter.position_policy
    if wanted != "auto":
        if packed is not None and (wanted, family) == ("original", "repack"):
            raise UsageError("packed prompts are numbered anew one by one: leave positions='auto' or 'repack'.")
        return wanted, ()
    if inputs.get("position_ids") is not None:
        return "original", ()
    if family == "original" or packed is not None:
        return family, ()
    kept, total = Counter[int](), Counter[int]()
    for row, k, n in counts:
        kept[row] += k
        total[row] += n
    # A row that loses nothing is numbered the same either way.
    shorter = [row for row in total if kept[row] < total[row]]
    anew = tuple(row for row in shorter if SPARSE * kept[row] >= total[row])
    if len(anew) == len(shorter) or adapter.positions(inputs) is not None:  # coordinates come whole or not at all
        return "repack", ()
    return ("mixed", anew) if anew else ("original", ())


def place(
    adapter: Adapter,
    kwargs: dict[str, Any],
    inputs: Mapping[str, Any],
    mask: Tensor,
    source: Tensor,
    policy: str,
    call: str,
    packed: Tensor | None,
    anew: Sequence[int] = (),
) -> None:
    """Set the `position_ids` of a shortened batch according to the policy, or leave them to the model.

    packed: what `packed_prompts` said. policy, anew: what `policy_of` said.
    """
    given = inputs.get("position_ids")
    new_mask = gather(mask, source, 0)
    kwargs.pop("position_ids", None)
    if packed is not None:
        text = _numbered(gather(packed, source, -1))
        if given is not None and given.dim() == 3:
            rows = gather(given[1:], source, 0) if policy == "original" else text.expand(len(given) - 1, *text.shape)
            text = torch.cat([text[None].to(given.device), rows.to(given.device)])
        elif given is None and policy == "repack":
            return  # the cumulative lengths say it all
        kwargs["position_ids"] = text
        # Filler columns are prompts of their own: with a mask, nothing would be read as packed.
        kwargs.pop("attention_mask", None)
        return
    axes = adapter.positions(inputs) if given is None else None
    if given is not None and policy == "original":
        kwargs["position_ids"] = gather(given, source, 0)
        if _text_row(given) is not None:
            kwargs.setdefault("attention_mask", new_mask)
    elif axes is not None or (given is not None and given.dim() == 3):
        # Row 0 is what the mask code reads: consecutive, or a gap would look like two packed prompts.
        text = repacked_positions(new_mask)
        if axes is not None and policy == "original":
            rows = gather(axes, source, 0)
        else:
            rows = text.expand(3 if axes is None else axes.shape[0], *text.shape)
        above = [text.unsqueeze(0).to(rows.device)] if adapter.takes_text_row() else []
        kwargs["position_ids"] = torch.cat([*above, rows])
    elif policy != "repack":
        offset = adapter.forward_position_offset if call == "forward" else 0
        numbers = gather(repacked_positions(mask) + offset, source, 0)
        for row in anew:
            numbers[row] = repacked_positions(new_mask[row]) + offset
        kwargs["position_ids"] = numbers
        # Without a mask, gapped positions would be read as several packed prompts.
        kwargs.setdefault("attention_mask", new_mask)


def shorten_lengths(kwargs: dict[str, Any], source: Tensor) -> None:
    """Flash-attention's lengths of packed prompts, counted again in the shortened row."""
    for name, longest in zip(CUMULATIVE, LONGEST):
        ends = kwargs.get(name)
        if ends is None:
            continue
        new = torch.searchsorted(source[0].to(ends.device), ends.to(source.dtype))
        kwargs[name] = new.to(ends.dtype)
        if (old := kwargs.get(longest)) is not None:
            most = new.diff().max()
            kwargs[longest] = most.to(old) if isinstance(old, Tensor) else int(most)


def _text_row(given: Any) -> Tensor | None:
    """The positions that Transformers looks for packed prompts in: all of them, or the first of four axes."""
    if not isinstance(given, Tensor) or given.dim() == 2:
        return given
    return given[0] if given.dim() == 3 and given.shape[0] == 4 else None


def _numbered(prompts: Tensor) -> Tensor:
    """0, 1, 2, ... within each packed prompt; prompts: rising numbers [B, L'], -1 for filler (which is all 0)."""
    columns = torch.arange(prompts.shape[1], device=prompts.device)
    new = torch.ones_like(prompts, dtype=torch.bool)
    new[:, 1:] = prompts[:, 1:] != prompts[:, :-1]
    first = torch.where(new, columns, 0).cummax(-1).values
    return (columns - first).masked_fill(prompts < 0, 0)
