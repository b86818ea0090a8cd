"""Ask a model the whole question set under many trials, by `prepare` and its own `generate`; encode pictures once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fsr.adapters import find
from fsr.adapters.base import Adapter
from fsr.errors import UsageError
from fsr.evaluation.batches import Batch, batch_of, outcomes
from fsr.evaluation.fingerprint import model_hash, relevance_key
from fsr.evaluation.in_llm import before, generate_in_llm
from fsr.evaluation.poor_pictures import ask_shrunk, ask_without_picture
from fsr.evaluation.qualities import CLEAN
from fsr.evaluation.question_set import QuestionSet
from fsr.evaluation.record import Outcome, RecordFile
from fsr.evaluation.remembered import Remembered, with_saliency
from fsr.evaluation.trials import Trial
from fsr.methods import Method
from fsr.pipeline.encode import encode
from fsr.pipeline.prepare import prepare
from fsr.pipeline.relevance_source import find_twin, resolve_scorer
from fsr.pipeline.score import bound
from fsr.signals.relevance import source_of

__all__ = ["Runner"]

BATCH = 64  # questions, at least; pictures are never split
LONGEST_ANSWER = 4  # tokens: two letters and the end


class Runner:
    """A model and a question set. `run` may be called again with more trials: pictures stay encoded.

    Args:
        model, processor: as `fsr.asking.load.load` gives them.
        questions: the set.
        resume: folder for partial results, or None. Files are keyed by the set's, the model's and the trial's hash.
        progress: show a bar on standard error.
        relevance: the source by name, as for `prepare`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        questions: QuestionSet,
        resume: Path | None = None,
        progress: bool = False,
        relevance: str = "auto",
    ) -> None:
        self.model, self.processor, self.questions, self.progress = model, processor, questions, progress
        self.relevance = relevance
        self.folder = None
        if resume is not None:
            self.folder = resume / f"{questions.sha256[:12]}-{model_hash(model)[:12]}{relevance_key(model, relevance)}"
        self._batches: list[Batch] = []
        self._methods: list[Method] = []
        self._signals: frozenset[str] = frozenset()
        self._own: dict[str, Remembered] = {}

    @property
    def adapter(self) -> Adapter:
        """What knows the model."""
        return find(self.model)

    @property
    def source(self) -> str:
        """Where relevance comes from, by its name in reports; what was asked for until pictures are encoded."""
        if not self._batches:
            return self.relevance
        scorer = self._batches[0].seen.scorer
        name = source_of(getattr(scorer, "inner", scorer))
        return Path(name).name if Path(name).is_dir() else name

    @property
    def signed(self) -> bool:
        """Whether relevance comes from a paired text tower, whose sign was measured."""
        return self.relevance == "auto" and self.adapter.paired_text_tower

    def run(self, trials: Sequence[Trial]) -> list[list[Outcome]]:
        """The outcomes of each trial, in the order of the set. Equal trials are run once."""
        n = len(self.questions)
        plan = {trial.key: trial for trial in trials}
        files = {key: RecordFile(self._file(trial), trial.settings) for key, trial in plan.items()}
        done, total = sum(len(f.outcomes) for f in files.values()), n * len(plan)
        if done < total:
            self.encode(list(plan.values()))
        with torch.no_grad(), tqdm(total=total, initial=done, unit="q", disable=not self.progress) as bar:
            for trial, file in zip(plan.values(), files.values()):
                bar.set_description(f"{trial.label} {trial.method.keep}")
                for index, batch in enumerate(self._batches):
                    if not file.has(batch.items):
                        new = [i for i in batch.items if i not in file.outcomes]
                        file.add([o for o in self._ask(trial, index, batch) if o.item in new])
                        bar.update(len(new))
        return [files[trial.key].complete(n) for trial in trials]

    def without_picture(self) -> list[Outcome]:
        """What the text alone answers; `encode` comes first."""
        return [outcome for batch in self._batches for outcome in ask_without_picture(self, batch)]

    @torch.no_grad()
    def points(self, level: str) -> float | None:
        """Share of questions whose most relevant token lies on what is asked; None where nothing scores relevance."""
        hits = []
        for batch in self._batches:
            if batch.seen.scorer is None:
                return None
            scorer = batch.seen.scorer.at(level)  # type: ignore[attr-defined]
            (part,) = batch.seen.parts
            read = [u.features for u in part.units] if scorer.reads_features else part.patches
            for item, states, asked in zip(batch.items, read, batch.asked):  # type: ignore[arg-type]
                if asked.any():
                    hits.append(bool(asked[scorer(states, self.questions.items[item].question.text).argmax()]))
        return sum(hits) / len(hits)

    @torch.no_grad()
    def encode(self, trials: Sequence[Trial]) -> None:
        """Encode all pictures with every signal that any of the trials reads; `run` does it where it has not been."""
        wanted: frozenset[str] = frozenset().union(*(before(trial.method).signals() for trial in trials))
        if self._batches and wanted <= self._signals:
            return
        self._methods += [before(trial.method) for trial in trials]
        wanted |= self._signals
        relevance: Any = self.relevance
        if "relevance" in wanted and self.signed:
            relevance = find_twin(self.adapter)
        scorer: Remembered | None = None
        self._batches, self._own = [], {}
        for items in tqdm(self._cuts(), desc="encoding", disable=not self.progress, leave=False):
            scenes = list(dict.fromkeys(self.questions.items[i].scene for i in items))
            pictures = [self.questions.picture(s) for s in scenes]
            one_each = self.prompts(["?"] * len(scenes), pictures)
            row = [scenes.index(self.questions.items[i].scene) for i in items]
            seen = encode(self.model, one_each, *self._methods, relevance=relevance).take(row)
            if seen.scorer is not None:
                scorer = scorer or Remembered(bound(getattr(seen.scorer, "inner", seen.scorer), self.processor))
                scorer.place(seen.parts[0], self._names(items))
                seen = replace(seen, scorer=scorer)
            texts = [self.questions.items[i].question.text for i in items]
            prompts = self.prompts(texts, [pictures[r] for r in row])
            self._batches.append(batch_of(self.questions, items, prompts, seen))
        self._signals = wanted

    # ------------------------------------------------------------------------------------------------------------------

    def _names(self, items: Sequence[int]) -> list[tuple[str, int]]:
        """What the picture of each question is called, for the noise on its signals."""
        return [(f"{self.questions.split} {self.questions.seed}", self.questions.items[i].scene) for i in items]

    def _own_scorer(self, method: Method, level: str) -> Any:
        """A method that brings its own relevance gets it at the level of quality that the others get theirs; None for
        those that bring none."""
        if method.own_relevance is None or "relevance" not in method.signals():
            return None
        if method.own_relevance not in self._own:
            _, scorer = resolve_scorer(self.adapter, method, "auto")
            own = Remembered(bound(scorer, self.processor))  # type: ignore[arg-type]
            for batch in self._batches:
                own.place(batch.seen.parts[0], self._names(batch.items))
            self._own[method.own_relevance] = own
        return self._own[method.own_relevance].at(level)

    def _file(self, trial: Trial) -> Path | None:
        return None if self.folder is None else self.folder / f"{trial.key}.jsonl"

    def _cuts(self) -> list[list[int]]:
        """Numbers of questions, batch by batch; questions of one picture stay together."""
        cuts: list[list[int]] = [[]]
        for i, item in enumerate(self.questions.items):
            if len(cuts[-1]) >= BATCH and item.scene != self.questions.items[i - 1].scene:
                cuts.append([])
            cuts[-1].append(i)
        return cuts

    def prompts(self, texts: list[str], pictures: list[Any] | None) -> dict[str, Any]:
        """Chat prompts, padded on the left, on the model's device; None leaves the pictures out."""
        shown = [] if pictures is None else [{"type": "image"}]
        turns = [[{"role": "user", "content": [*shown, {"type": "text", "text": t}]}] for t in texts]
        rendered = [self.processor.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
        made = self.processor(text=rendered, images=pictures, padding=True, padding_side="left", return_tensors="pt")
        return {k: v.to(self.model.device) if isinstance(v, Tensor) else v for k, v in made.items()}

    def _ask(self, trial: Trial, index: int, batch: Batch) -> list[Outcome]:
        if trial.shrunk:
            return ask_shrunk(self, batch, trial.method)
        seen, quality = batch.seen, trial.seen
        if trial.sign != 1 and not self.signed:
            raise UsageError("relevance has a sign where it comes from a paired text tower only: leave sign at 1.")
        if isinstance(seen.scorer, Remembered):
            seen = replace(seen, scorer=seen.scorer.at(quality.relevance, trial.sign))
        if quality.saliency != CLEAN.saliency:
            seen = with_saliency(seen, batch.owner, quality.saliency, self._names(batch.items))
        questions = [self.questions.items[i].question.text for i in batch.items]
        method = trial.method_for(index)
        if isinstance(method, Method):
            own = self._own_scorer(method, quality.relevance)
            ready = prepare(
                self.model,
                method,
                batch.prompts,
                questions,
                processor=self.processor,
                relevance=own or ("auto" if isinstance(seen.scorer, Remembered) else self.relevance),
                positions=trial.positions,
                encoded=seen,
            )
            new, selections = self.generate(**ready)[:, ready["input_ids"].shape[1] :], ready.report.selections
        else:
            new, selections = generate_in_llm(
                self.model, method, batch.prompts, questions, trial.positions, seen, self.generate
            )
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        return outcomes(batch, selections, texts)

    def generate(self, **ready: Any) -> Tensor:
        """The model's own `generate`, greedy and short."""
        return self.model.generate(**ready, max_new_tokens=LONGEST_ANSWER, do_sample=False)
