"""Answers of a model: sampled, judged, kept as candidates on disk. What rl, generate and loops have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy

from luthier import parts
from luthier.data.shapes import last_answer, messages_of, question_and_answer
from luthier.errors import RunError
from luthier.evals.answering import measure
from luthier.evals.evaluate import assign_metrics
from luthier.keyed import seed63
from luthier.modalities.language.model import LanguageModel
from luthier.recipe.settings import GenerateSettings
from luthier.rewards.base import Log, build_rewards
from luthier.rollouts.base import Judge, Prompt
from luthier.rollouts.judge import judge_by
from luthier.run_folder import read_jsonl, write_text
from luthier.sampling.samplers.base import Asking, SamplerPart
from luthier.sampling.text import answer_text
from luthier.types import Candidate, Record, Request, Row, Sampler, Scored, Stream, Trajectory


def make_sampler(model: LanguageModel, module: Any, block: GenerateSettings, folder: Path | None = None) -> Sampler:
    """Who answers: the model itself, as it is at each call, or whom the block names.

    Raises:
        RunError: nobody is there to answer.
    """
    part: SamplerPart = parts.build("sampler", block.sampler, model.recipe.base)
    part.reach()
    renderer, tokenizer = model.renderer, model.loaded.tokenizer
    return part.make(Asking(module, tokenizer, renderer.end_ids, renderer.end_id, block.rows, folder))


def make_judge(model: LanguageModel, block: GenerateSettings, log: Log = lambda line: None) -> Judge:
    """The recipe's rewards as a judge of answers drawn by `block`; `auto` is the metric of their evaluation."""
    settings, renderer = model.recipe.settings, model.renderer
    if settings.reward == "auto":
        return _by_metric(model, block)
    return judge_by(
        build_rewards(settings.reward, model.recipe.base, log),
        lambda ids: text_of(model, block, ids),
        renderer.end_ids,
        renderer.reference,
        renderer.prompt_text,
    )


def _by_metric(model: LanguageModel, block: GenerateSettings) -> Judge:
    records = model.prepared.records
    references = {name: model.renderer.reference(record) for name, record in records.items()}
    metric = model.recipe.settings.evaluate.metric
    metrics, _ = assign_metrics(list(records.values()), references, metric, model.recipe.base)

    def judge(asked: Sequence[tuple[Prompt, Sequence[Trajectory]]]) -> list[list[Scored]]:
        return [[score(prompt.record, one) for one in answers] for prompt, answers in asked]

    def score(record: Record, one: Trajectory) -> Scored:
        if one.finish == "error":
            return Scored(one, None)
        metric = metrics[record.id]
        cut_off = one.finish == "length"
        value = 0.0 if cut_off else measure(metric, text_of(model, block, one.ids), record, references[record.id])
        return Scored(one, value, {metric.kind: value})

    return judge


def text_of(model: LanguageModel, block: GenerateSettings, ids: Sequence[int]) -> str:
    """What an answer says, without what ended it."""

    def decode(ids: Sequence[int]) -> str:
        return model.loaded.tokenizer.decode(ids, skip_special_tokens=True)

    return answer_text(ids, model.renderer.end_ids, decode, block.stop)


def gold(model: LanguageModel) -> list[Candidate]:
    """The recipe's own training records as candidates, in their order."""
    records = model.prepared.records
    return [
        Candidate(records[row.record], row, model.renderer.reference(records[row.record]), "data")
        for row in model.prepared.train
    ]


def in_request_order(model: LanguageModel, record: Record, instruction: str | None = None) -> Record:
    """The record that asks for an answer to a record; an `instruction` may show its gold answer."""
    if instruction is None:
        return record
    question = question_and_answer(record)[0]
    shown = instruction.replace("{prompt}", question).replace("{answer}", model.renderer.reference(record))
    fields = {"prompt": shown, "completion": model.renderer.reference(record) or " "}
    return replace(record, shape="prompt_completion", fields=fields)


def _request(model: LanguageModel, asked: Record, seed: int) -> Request:
    """An answer to a record, asked for as ids and as a conversation."""
    prompt = model.renderer.prompt(asked)
    messages = messages_of(asked)
    before = {"messages": messages[: last_answer(messages)]}
    return Request(prompt, asked.id, group=asked.id, seed=seed, metadata=before)


def generate_candidates(
    model: LanguageModel,
    name: str,
    asked: Sequence[Candidate],
    samples: int,
    instruction: str | None,
    sample: Sampler,
    judge: Judge,
    progress: Callable[[int], None] | None = None,
    log: Log = lambda line: None,
) -> list[Candidate]:
    """`samples` answers to each record. Rows hold the record's own prompt, whatever the instruction showed.

    Raises:
        RunError: answers are missing that may come later, or all are; single ones that are refused are logged.
    """
    records = list({one.record.id: one.record for one in asked}.values())
    settings = model.recipe.settings
    requests = [
        _request(model, in_request_order(model, record, instruction), seed63(settings.seed, name, record.id, index))
        for record in records
        for index in range(samples)
    ]
    found = sample(requests, settings.generate.sampling(), progress)
    _look_for_answers(found, log)
    found = [replace(one, request=request) for one, request in zip(found, requests, strict=True)]
    groups = [found[start : start + samples] for start in range(0, len(found), samples)]
    prompts = [Prompt(record, model.renderer.prompt(record)) for record in records]
    judged = judge(list(zip(prompts, groups, strict=True)))
    return [
        _candidate(model, prompt, one, f"{prompt.record.id}@{name}.{index}", name)
        for prompt, scored in zip(prompts, judged, strict=True)
        for index, one in enumerate(scored)
        if one.trajectory.finish != "error"
    ]


def _look_for_answers(found: Sequence[Trajectory], log: Log) -> None:
    """Log what was refused; raise RunError if anything may still come, or nothing came."""
    missing = [(one, one.request.metadata if one.request else {}) for one in found if one.finish == "error"]
    late = [more for _, more in missing if not more.get("refused")]
    if late or (missing and len(missing) == len(found)):
        why = (late or [more for _, more in missing])[0].get("error")
        raise RunError(
            f"{len(late) or len(missing)} of {len(found)} answers {'are missing' if late else 'were refused'}: {why}.",
            "Once it can answer, go on with `--resume`: the answers that came are kept."
            if late
            else "Change what is asked for in `generate:`, or the options of its `sampler`.",
        )
    for one, more in missing:
        log({"event": "refused", "record": one.record, "error": more.get("error")})


def _candidate(model: LanguageModel, prompt: Prompt, scored: Scored, row: str, name: str) -> Candidate:
    ids = numpy.array([*prompt.ids, *scored.trajectory.ids], dtype=numpy.int32)
    weights = (numpy.arange(len(ids)) >= len(prompt.ids)).astype(numpy.float32)
    return Candidate(
        prompt.record,
        Row(row, ids, {"weights": Stream(weights, "token")}),
        text_of(model, model.recipe.settings.generate, scored.trajectory.ids),
        name,
        scored.reward,
    )


def write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """One line each, whole or not at all."""
    lines = [
        {
            "record": one.record.id,
            "row": one.row.id,
            "source": one.source,
            "reward": one.reward,
            "answer": one.answer,
            "ids": one.row.ids.tolist(),
            "prompt_tokens": int((one.row.streams["weights"].values == 0).sum()),
        }
        for one in candidates
    ]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_candidates(path: Path, model: LanguageModel) -> list[Candidate]:
    """What `write_candidates` wrote."""
    return [_read(line, model.prepared.records[line["record"]]) for line in read_jsonl(path)]


def _read(line: dict[str, Any], record: Record) -> Candidate:
    ids = numpy.array(line["ids"], dtype=numpy.int32)
    weights = (numpy.arange(len(ids)) >= line["prompt_tokens"]).astype(numpy.float32)
    row = Row(line["row"], ids, {"weights": Stream(weights, "token")})
    return Candidate(record, row, line["answer"], line["source"], line["reward"])
