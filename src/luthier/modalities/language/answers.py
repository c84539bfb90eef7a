"""Answers of a model: sampled, judged, written to disk as candidates. `rl`, `generate` and `loop` use these."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy

from luthier import parts
from luthier.data.batches import shortened
from luthier.data.shapes import last_answer, messages_of, question_and_answer
from luthier.errors import DataError, RunError
from luthier.evals.answering import measure
from luthier.evals.evaluate import assign_metrics
from luthier.keyed import seed63
from luthier.modalities.language.model import LanguageModel
from luthier.recipe.settings import GenerateSettings
from luthier.records.calls import for_server
from luthier.rewards.base import Log, build_rewards
from luthier.rollouts.base import Judge, Prompt
from luthier.rollouts.judge import judge_by
from luthier.run_folder import read_jsonl, write_text
from luthier.sampling.samplers.base import Asking, SamplerPart
from luthier.sampling.text import answer_text
from luthier.types import Candidate, Record, Request, Row, Sampler, Scored, Stream, Trajectory

TOO_LONG = "too_long"
"""The event of an answer whose row is longer than `data.max_tokens`."""


def make_sampler(model: LanguageModel, module: Any, block: GenerateSettings, folder: Path | None = None) -> Sampler:
    """The sampler that the block names: the model in training, with its weights at each call, or another model.

    Raises:
        RunError: the sampler cannot be reached.
    """
    part: SamplerPart = parts.build("sampler", block.sampler, model.recipe.base)
    part.reach()
    renderer, tokenizer = model.renderer, model.loaded.tokenizer
    return part.make(Asking(module, tokenizer, renderer.end_ids, renderer.end_id, block.rows, folder))


def make_judge(model: LanguageModel, block: GenerateSettings, log: Log = lambda line: None) -> Judge:
    """The recipe's rewards as a judge of answers drawn by `block`; `auto` is the metric of the evaluation.

    Args:
        log: takes an event for each reward that fails on an answer.
    """
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
        scored = []
        for prompt, answers in asked:
            scored.append([score(prompt.record, answer) for answer in answers])
        return scored

    def score(record: Record, answer: Trajectory) -> Scored:
        if answer.finish == "error":
            return Scored(answer, None)
        metric = metrics[record.id]
        # An answer that was cut off is wrong, whatever its beginning says.
        reward = 0.0
        if answer.finish != "length":
            reward = measure(metric, text_of(model, block, answer.ids), record, references[record.id])
        return Scored(answer, reward, {metric.kind: reward})

    return judge


def text_of(model: LanguageModel, block: GenerateSettings, ids: Sequence[int]) -> str:
    """The text of an answer, without the end-of-turn token or stop string that ended it."""
    return answer_text(ids, model.renderer.end_ids, model.decode, block.stop)


def gold(model: LanguageModel) -> list[Candidate]:
    """The recipe's own training records as candidates, in their order."""
    candidates = []
    for row in model.prepared.train:
        record = model.prepared.records[row.record]
        candidates.append(Candidate(record, row, model.renderer.reference(record), "data"))
    return candidates


def with_instruction(model: LanguageModel, record: Record, instruction: str | None = None) -> Record:
    """The record whose prompt is sent to the sampler: the record itself, or the instruction filled in with it."""
    if instruction is None:
        return record
    question, reference = question_and_answer(record)[0], model.renderer.reference(record)
    prompt = instruction.replace("{prompt}", question).replace("{answer}", reference)
    fields = {"prompt": prompt, "completion": reference or " "}
    return replace(record, shape="prompt_completion", fields=fields)


def _request(model: LanguageModel, record: Record, seed: int) -> Request:
    """A request for an answer to a record: as token ids, and as messages for samplers behind a server."""
    messages = messages_of(record)
    before = {"messages": for_server(messages[: last_answer(messages)])}
    return Request(model.renderer.prompt(record), record.id, group=record.id, seed=seed, metadata=before)


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
    """`samples` answers to each record, judged. Rows hold the record's own prompt, even under an instruction.

    Args:
        name: of the step; part of the rows' ids and of the seeds.
        asked: candidates whose records are answered, each record once.
        instruction: text with `{prompt}`, and perhaps `{answer}`, that is asked in place of the prompt.
        progress: takes the number of answers so far.
        log: takes an event for each refused answer.

    Raises:
        RunError: answers failed and may succeed later, or all were refused. Single refused ones are only logged.
    """
    records = list({candidate.record.id: candidate.record for candidate in asked}.values())
    settings = model.recipe.settings
    requests = []
    for record in records:
        record_asked = with_instruction(model, record, instruction)
        for index in range(samples):
            requests.append(_request(model, record_asked, seed63(settings.seed, name, record.id, index)))
    trajectories = sample(requests, settings.generate.sampling(), progress)
    _refuse_missing(trajectories, log)

    answers = [replace(answer, request=request) for answer, request in zip(trajectories, requests, strict=True)]
    groups = [answers[start : start + samples] for start in range(0, len(answers), samples)]
    prompts = [Prompt(record, model.renderer.prompt(record)) for record in records]
    candidates = []
    for prompt, scored in zip(prompts, judge(list(zip(prompts, groups, strict=True))), strict=True):
        for index, answer in enumerate(scored):
            if answer.trajectory.finish != "error":
                row_id = f"{prompt.record.id}@{name}.{index}"
                candidates.append(_candidate(model, prompt, answer, row_id, name))
    return _fitting(model, candidates, log)


def _fitting(model: LanguageModel, candidates: list[Candidate], log: Log) -> list[Candidate]:
    """The candidates within `data.max_tokens`, by `data.too_long`; what is left out or cut is logged.

    Raises:
        DataError: `data.too_long` is `error` and a row is longer.
    """
    limit, policy = model.recipe.settings.data.max_tokens, model.recipe.settings.data.too_long
    fitting = []
    for candidate in candidates:
        length, row = len(candidate.row), candidate.row
        if length <= limit:
            fitting.append(candidate)
            continue
        if policy == "error":
            raise DataError(
                f"An answer to record {candidate.record.id} has {length} tokens with its prompt, more than"
                f" data.max_tokens {limit}.",
                "Raise `data.max_tokens`, lower `generate.max_new_tokens`, or choose `data.too_long: drop`.",
            )
        short = shortened(row, limit)
        kept = policy == "truncate" and short.targets > 0
        if kept:
            fitting.append(replace(candidate, row=short))
        log({"event": TOO_LONG, "record": candidate.record.id, "tokens": length, "kept": kept})
    return fitting


def _refuse_missing(answers: Sequence[Trajectory], log: Log) -> None:
    """Log the refused answers; raise RunError if failed ones may succeed later, or if all were refused."""
    failed = [answer for answer in answers if answer.finish == "error"]
    later = [answer for answer in failed if not _details(answer).get("refused")]
    if later or (failed and len(failed) == len(answers)):
        cause = _details((later or failed)[0]).get("error")
        count, what = len(later) or len(failed), "are missing" if later else "were refused"
        raise RunError(
            f"{count} of {len(answers)} answers {what}: {cause}.",
            "Once the sampler answers again, go on with `--resume`: the answers so far are kept."
            if later
            else "Change what is asked for in `generate:`, or the options of its `sampler`.",
        )
    for answer in failed:
        log({"event": "refused", "record": answer.record, "error": _details(answer).get("error")})


def _details(answer: Trajectory) -> Mapping[str, Any]:
    """What the sampler noted about a failed answer: `error`, and `refused` where another try would fail too."""
    return answer.request.metadata if answer.request else {}


def _candidate(model: LanguageModel, prompt: Prompt, scored: Scored, row: str, name: str) -> Candidate:
    generate = model.recipe.settings.generate
    answer = text_of(model, generate, scored.trajectory.ids)
    learned = list(scored.trajectory.ids)
    if generate.stop and answer != answer_text(learned, model.renderer.end_ids, model.decode):
        # The row is what the answer's text is judged for: without the stop string, and with its end.
        learned = model.loaded.tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        learned += [] if model.renderer.end_id is None else [model.renderer.end_id]
    ids = numpy.array([*prompt.ids, *learned], dtype=numpy.int32)
    weights = (numpy.arange(len(ids)) >= len(prompt.ids)).astype(numpy.float32)
    return Candidate(
        prompt.record,
        Row(row, ids, {"weights": Stream(weights, "token")}),
        answer,
        name,
        scored.reward,
    )


def write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """JSON lines, one per candidate; the file appears complete or not at all."""
    lines = []
    for candidate in candidates:
        weights = candidate.row.streams["weights"].values
        lines.append(
            {
                "record": candidate.record.id,
                "row": candidate.row.id,
                "source": candidate.source,
                "reward": candidate.reward,
                "answer": candidate.answer,
                "ids": candidate.row.ids.tolist(),
                "prompt_tokens": int((weights == 0).sum()),
            }
        )
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_candidates(path: Path, model: LanguageModel) -> list[Candidate]:
    """The candidates of a file that `write_candidates` wrote."""
    return [_read(line, model.prepared.records[line["record"]]) for line in read_jsonl(path)]


def _read(line: dict[str, Any], record: Record) -> Candidate:
    ids = numpy.array(line["ids"], dtype=numpy.int32)
    weights = (numpy.arange(len(ids)) >= line["prompt_tokens"]).astype(numpy.float32)
    row = Row(line["row"], ids, {"weights": Stream(weights, "token")})
    return Candidate(record, row, line["answer"], line["source"], line["reward"])
