"""The steps of a recipe, one after the other: what each takes, what it leaves.

A pipeline is resumed by running it again: a step that had ended finds its last checkpoint or its records and
does nothing, so what follows meets the same model and the same data bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from luthier import parts
from luthier.data.batches import data_order
from luthier.engine.checkpoint import save_companions
from luthier.engine.probe import LossCurves
from luthier.engine.score import score
from luthier.engine.trainer import Trainer
from luthier.errors import RecipeError, RunError
from luthier.modalities.base import Workspace, build_tuners, micro_tokens
from luthier.modalities.language.answers import (
    generate_candidates,
    gold,
    make_judge,
    make_sampler,
    read_candidates,
    write_candidates,
)
from luthier.modalities.language.columns import forget_states
from luthier.modalities.language.workspace import LanguageWorkspace
from luthier.modalities.open import open_workspace
from luthier.models.policy import TokenPolicy
from luthier.recipe import Stage, flat
from luthier.recipe.steps import BASE, CHUNK, DATA, NEWEST
from luthier.run_folder import read_jsonl, write_json
from luthier.runs.journal import Journal
from luthier.runs.run import Run, fingerprint
from luthier.runs.stop import Stop
from luthier.select.records.base import Subset
from luthier.steps.evaluate import evaluate_sets
from luthier.steps.scores import score_candidates, scored_columns, scores_facts, write_scores
from luthier.steps.train import carry_probe, trained_facts, training
from luthier.steps.verify import PROBED, SCORED
from luthier.types import Candidate

Status = Literal["done", "stopped"]


@dataclass
class StepModel:
    """A model in memory: the module, what trained it last (None: nothing), an id that its derivation decides."""

    module: nn.Module
    trainer: Trainer | None
    weights_id: str
    trainings: int = 0

    def plain(self) -> nn.Module:
        """The module with all tuning folded in."""
        if self.trainer is not None:
            for tuner in self.trainer.tuners:  # what stands below merges first
                self.module = tuner.merge(self.module)
            self.trainer = None
        return self.module

    def save(self, folder: Path, workspace: Workspace) -> None:
        """Write it, loadable without Luthier; after several trainings or tuners the whole model: no adapter is all."""
        shutil.rmtree(folder, ignore_errors=True)
        weights = folder / workspace.WEIGHTS
        weights.mkdir(parents=True)
        tuners = [] if self.trainer is None else self.trainer.tuners
        if workspace.WHOLE or self.trainer is None or len(tuners) > 1 or (self.trainings > 1 and tuners[0].MERGES):
            copied = replace(self, module=copy.deepcopy(self.module)) if self.trainer is not None else self
            copied.plain().save_pretrained(weights)  # pyright: ignore[reportCallIssue]
        else:
            self.trainer.tuners[-1].save(self.module, self.trainer.masters.of_model(), weights)
        if self.trainer is not None:
            save_companions(self.trainer.policy.companions, folder.parent / "companions")
        workspace.save_assets(folder)


@dataclass
class Work:
    """A recipe being carried out: models and records by the name of the step that left them."""

    run: Run
    workspace: Workspace
    journal: Journal
    stop: Stop
    models: dict[str, StepModel] = field(default_factory=dict)
    records: dict[str, list[Candidate]] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    live: dict[str, Trainer] = field(default_factory=dict)
    columns: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def carry_out(self, stages: Sequence[Stage]) -> Status:
        """All steps in order; "stopped" when one was asked to end."""
        self._refuse_unmerged(stages)
        loaded = self.workspace.loaded
        base = StepModel(loaded.module, None, loaded.weights_id, trainings=int(loaded.folded))
        self.models = {BASE: base, NEWEST: base}
        if len(stages) == 1 and self.run.recipe.settings.steps is None:
            return self._train(stages[0], self.run.folder, [], label="")
        self.records[DATA] = gold(self.language)
        return self._sequence(stages, self.run.folder / "steps", [])

    @property
    def language(self) -> LanguageWorkspace:
        """The workspace of pipelines, which are of language models."""
        assert isinstance(self.workspace, LanguageWorkspace)
        return self.workspace

    def _refuse_unmerged(self, stages: Sequence[Stage]) -> None:
        """Raise RecipeError where a training starts from a model whose tuning cannot be folded in."""
        trainings = [stage for stage in flat(stages) if stage.do in ("train", "rl")]
        if trainings and self.workspace.loaded.tuner is not None:
            raise RecipeError(
                f"{self.workspace.loaded.name} was trained with `{self.workspace.loaded.tuner}`, which cannot be merged, so"
                " it cannot be trained further.",
                "Start from its base model.",
            )
        for place, stage in enumerate(trainings):
            lasting = [tuner.kind for tuner in build_tuners(stage.recipe) if not tuner.MERGES]
            after = [one for one in trainings[place + 1 :] if "model" not in one.block]  # which is a model of its own
            later = [one.name for one in after if one.block["from"] in (NEWEST, stage.name)]
            if lasting and later:
                raise RecipeError(
                    f"Step `{later[0]}` trains what step `{stage.name}` left, and `{lasting[0]}` cannot be merged.",
                    f"Train with `{lasting[0]}` in the last step.",
                )

    def _sequence(
        self, stages: Sequence[Stage], folder: Path, after: Sequence[Stage], span: tuple[float, float] | None = None
    ) -> Status:
        for index, stage in enumerate(stages):
            later = [*stages[index + 1 :], *after]
            if self._one(stage, folder / stage.name, later, span) == "stopped":
                return "stopped"
        return "done"

    def _one(self, stage: Stage, folder: Path, later: Sequence[Stage], span: tuple[float, float] | None) -> Status:
        if stage.do in ("train", "rl"):
            return self._train(
                stage, folder, later, label=str(folder.relative_to(self.run.folder / "steps")), span=span
            )
        if stage.do == "loop":
            return self._loop(stage, folder, later)
        with self.stop.at_once(), self.run.timed(stage.do):
            folder.mkdir(parents=True, exist_ok=True)
            VERBS[stage.do](self, stage, folder)
        return "done"

    def _loop(self, stage: Stage, folder: Path, later: Sequence[Stage]) -> Status:
        """The body once per round, each on its own share of the records."""
        rounds, source = stage.block["rounds"], self.records[stage.block["data"]]
        chunks = _chunks(source, rounds, self.run.recipe.settings.seed)
        self.live = {}
        for number, chunk in enumerate(chunks):
            self.records[CHUNK] = chunk
            span = (number / rounds, (number + 1) / rounds) if stage.block["carry"] else None
            after = [*(stage.body if number + 1 < rounds else ()), *later]
            if self._sequence(stage.body, folder / f"round-{number + 1}", after, span) == "stopped":
                return "stopped"
        self.models[stage.name] = self.models[NEWEST]
        self.live = {}
        return "done"

    def _train(
        self, stage: Stage, folder: Path, later: Sequence[Stage], label: str, span: tuple[float, float] | None = None
    ) -> Status:
        """One training; with a `span` it goes on where the round before left model and optimiser."""
        live = self.live.get(stage.name) if span is not None else None
        aside = "model" in stage.block
        with self.stop.at_once():
            if aside:
                workspace = open_workspace(stage.recipe, self.run.cache)
                source = StepModel(workspace.loaded.module, None, workspace.loaded.weights_id)
            else:
                source = self.models[stage.block["from"]]
                workspace = self._workspace(stage, source, live, later)
            sub = replace(self.run, recipe=stage.recipe, folder=folder)
            observe = self._observer(label)
            trainer, facts = training(sub, workspace, observe, self.stop.requested, live, span or (0.0, 1.0))
            if stage.block.get("probe"):
                carry_probe(trainer, stage.block["probe"]["every"])
            trainer.resume()
            self.journal.forget_after(trainer.position.updates, label)
        self.journal.phase(f"train {label}".strip())
        with self.run.timed("train"):
            status = trainer.train()
        if status == "done" and not aside and source.weights_id != self.workspace.loaded.weights_id:
            forget_states(trainer.policy)  # of a model that this run alone has
        derived = _derived(source.weights_id, stage, trainer) if label else source.weights_id  # no step follows
        model = StepModel(trainer.policy.module, trainer, derived, source.trainings + (not live))
        self._leave(stage, model, trainer)
        lines = [line for line in read_jsonl(self.journal.folder / "metrics.jsonl") if "loss" in line]
        facts |= trained_facts(trainer, [line for line in lines if line.get("step", "") == label])
        own = {"model": stage.recipe.settings.model.path} if aside else {}
        self.stages[label] = {"do": stage.do, **own, **facts}
        return status

    def _leave(self, stage: Stage, model: StepModel, trainer: Trainer) -> None:
        """What later steps find: the model, unless it was one aside, and what its probe saw."""
        if "model" not in stage.block:
            self.models[stage.name] = self.models[NEWEST] = model
            self.live[stage.name] = trainer
        for probe in trainer.probes:
            if isinstance(probe, LossCurves):
                self.columns["trajectory"] = probe.column()

    def _workspace(self, stage: Stage, source: StepModel, live: Trainer | None, later: Sequence[Stage]) -> Workspace:
        """The recipe's workspace with the step's model and rows. A model that a later step starts from is copied."""
        loaded, prepared = self.workspace.loaded, self.workspace.prepared
        if live is None:
            module = source.plain()
            needed = {step.block.get("from", NEWEST) for step in flat(later)}
            if any(self.models.get(name) is source for name in needed - {NEWEST}):
                module = copy.deepcopy(module)
            loaded = replace(loaded, module=module.requires_grad_(False), weights_id=source.weights_id)
        if stage.block["data"] != DATA:
            chosen = self._inputs(stage)
            if not chosen:
                raise RunError(
                    f"Step `{stage.name}` has nothing to train on: `{stage.block['data']}` kept no record.",
                    "Sample more answers, start from a better model, or keep gold answers too.",
                )
            records = prepared.records | {one.row.id: one.record for one in chosen}
            prepared = replace(prepared, train=[one.row for one in chosen], records=records)
        return replace(self.workspace, recipe=stage.recipe, loaded=loaded, prepared=prepared)

    def _inputs(self, stage: Stage) -> list[Candidate]:
        names = stage.block["data"]
        return [one for name in (names if isinstance(names, list) else [names]) for one in self.records[name]]

    def _observer(self, label: str) -> Callable[[dict[str, Any]], None]:
        return self.journal.event if not label else lambda event: self.journal.event({**event, "step": label})

    def label(self, folder: Path) -> str:
        """A step's name with the loops and rounds that it stands in."""
        return str(folder.relative_to(self.run.folder / "steps"))

    def model_of(self, stage: Stage) -> nn.Module:
        """The model that a step looks at or samples from."""
        return self.models[stage.block["from"]].module

    def facts(self) -> dict[str, Any]:
        """`train` as of one training, and `steps` where there are several."""
        trained = [one for one in self.stages.values() if one["do"] in ("train", "rl")]
        if self.run.recipe.settings.steps is None:
            return {"train": {name: value for name, value in trained[0].items() if name != "do"}}
        others = [one for one in self.stages.values() if one["do"] not in ("train", "rl")]
        return {"train": _together(trained, others), "steps": self.stages}


def _generate(work: Work, stage: Stage, folder: Path) -> None:
    """Answers to records, judged; read back from disk when they are there."""
    path, workspace = folder / "records.jsonl", replace(work.language, recipe=stage.recipe)
    asked = work._inputs(stage)
    if stage.block["unless"] is not None:
        solved = {one.record.id for one in work.records[stage.block["unless"]] if (one.reward or 0) >= 1}
        asked = [one for one in asked if one.record.id not in solved]
    total = len({one.record.id for one in asked}) * stage.block["samples"]
    if not path.is_file():
        sample = make_sampler(workspace, work.model_of(stage), stage.recipe.settings.generate, work.run.shared)
        label, observe = work.label(folder), work._observer(work.label(folder))
        work.journal.forget_after(0, label)
        progress = work.journal.phase(f"generate {stage.name}", total)
        found = generate_candidates(
            workspace,
            label,
            asked,
            stage.block["samples"],
            stage.block["instruction"],
            sample,
            make_judge(workspace, stage.recipe.settings.generate, observe),
            lambda done: progress(done, total),
            observe,
        )
        write_candidates(path, found)
    found = read_candidates(path, workspace)
    work.records[stage.name] = found
    rewards = [one.reward for one in found if one.reward is not None]
    work.stages[work.label(folder)] = {
        "do": "generate",
        "answers": len(found),
        **({"refused": total - len(found)} if len(found) < total else {}),
        "generated_tokens": sum(one.row.targets for one in found),
        "reward": sum(rewards) / len(rewards) if rewards else None,
        "right": sum(reward >= 1 for reward in rewards),
    }


def _select(work: Work, stage: Stage, folder: Path) -> None:
    """A subset of candidates, in the order that the part gives."""
    part: Subset = parts.build("subset", stage.block["subset"], stage.recipe.base)
    candidates = work._inputs(stage)
    columns = _columns(work, stage, candidates, part.READS) if part.READS else {}
    chosen = [candidates[place] for place in part.choose(candidates, columns, stage.recipe.settings.seed)]
    work.records[stage.name] = chosen
    sources: dict[str, int] = {}
    for one in chosen:
        sources[one.source] = sources.get(one.source, 0) + 1
    facts = {"do": "select", "candidates": len(candidates), "kept": len(chosen), "sources": sources}
    if set(part.READS) - {*PROBED, *SCORED}:
        facts |= {"looked_rows": len(candidates), "looked_tokens": sum(len(one.row) for one in candidates)}
    work.stages[work.label(folder)] = facts
    write_json(folder / "kept.json", {**facts, "rows": [one.row.id for one in chosen]})


def _columns(work: Work, stage: Stage, candidates: Sequence[Candidate], names: Sequence[str]) -> dict[str, Any]:
    """What the newest probe or score step left, and what a score pass of the step's model gives for their rows."""
    columns = {name: work.columns[name] for name in names if name in (*PROBED, *SCORED)}
    _refuse_unscored(stage, candidates, {name: columns[name] for name in columns if name in SCORED})
    asked = [name for name in names if name not in columns]
    if asked:
        rows, micro = (
            [one.row for one in candidates],
            micro_tokens(stage.recipe, work.workspace.loaded.module, work.workspace.device),
        )
        columns |= score(TokenPolicy(work.model_of(stage)), rows, asked, micro)
    return columns


def _score(work: Work, stage: Stage, folder: Path) -> None:
    """How likely each answer is under the step's model, and what the judge says; read back when it is there."""
    path, candidates = folder / "scores.jsonl", work._inputs(stage)
    if not path.is_file():
        work.journal.phase(f"score {stage.name}")
        lines = score_candidates(
            replace(work.language, recipe=stage.recipe),
            TokenPolicy(work.model_of(stage)),
            candidates,
            entropy=stage.block["entropy"],
            judge_again="reward" in stage.block,
            tokens=micro_tokens(stage.recipe, work.model_of(stage), work.workspace.device),
            log=work.journal.event,
        )
        write_scores(path, lines)
    lines = read_jsonl(path)
    work.columns |= scored_columns(lines)
    work.stages[work.label(folder)] = scores_facts(lines, sum(len(one.row) for one in candidates))


def _evaluate(work: Work, stage: Stage, folder: Path) -> None:
    """Scores of the model as it is between two steps."""
    workspace = replace(work.workspace, recipe=stage.recipe)
    found = evaluate_sets(workspace, work.model_of(stage), work.run.sets, folder, work.journal)
    work.stages[work.label(folder)] = {"do": "evaluate", "evaluation": found}


def _refuse_unscored(stage: Stage, candidates: Sequence[Candidate], columns: dict[str, Any]) -> None:
    """Raise RunError where a score step looked at other answers than those that are chosen from."""
    for name, column in columns.items():
        if missing := [one.row.id for one in candidates if one.row.id not in column]:
            raise RunError(
                f"Step `{stage.name}` chooses by `{name}`, which {len(missing)} of {len(candidates)} answers lack, such"
                f" as {missing[0]}.",
                "Let the `score` step before it look at the same `data`.",
            )


VERBS: dict[str, Callable[[Work, Stage, Path], None]] = {
    "generate": _generate,
    "select": _select,
    "score": _score,
    "evaluate": _evaluate,
}


def _chunks(source: Sequence[Candidate], rounds: int, seed: int) -> list[list[Candidate]]:
    """Disjoint equal shares of the records in keyed order; all candidates of a record stay together."""
    names = list(dict.fromkeys(one.record.id for one in source))
    ordered = [names[place] for place in data_order(names, seed, 0)]
    chunk_of = {name: place * rounds // len(ordered) for place, name in enumerate(ordered)}
    return [[one for one in source if chunk_of[one.record.id] == number] for number in range(rounds)]


def _derived(weights_id: str, stage: Stage, trainer: Trainer) -> str:
    """An id of what a training left: where it started, how it was tuned, and the bits of all that it trained."""
    digest = hashlib.sha256(f"{weights_id}/{stage.name}/{fingerprint(stage.recipe)}".encode())
    for name, tensor in trainer.masters.of_model().items():
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _together(trained: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several trainings as one: sums of what was used, also by `others` than trainings, the largest memory."""
    sums = ("updates", "records", "tokens", "targets", "target_tokens", "seconds", "skipped_updates")
    found: dict[str, Any] = {name: sum(one[name] for one in trained) for name in sums}
    for name in ("looked_rows", "looked_tokens", "generated_tokens"):
        found[name] = sum(one.get(name, 0) for one in (*trained, *others))
    largest = ("peak_memory_bytes", "estimated_memory_bytes", "trainable_parameters")
    found |= {name: max(one[name] for one in trained) for name in largest}
    found["counts"] = trained[0]["counts"]
    found["tokens_per_second"] = found["tokens"] / found["seconds"] if found["seconds"] else None
    found["repeatable"] = all(one["repeatable"] for one in trained)
    own = [one for one in trained if "model" not in one] or trained
    found |= {"loss_first": own[0]["loss_first"], "loss_last": own[-1]["loss_last"]}
    return {**found, **{name: own[0][name] for name in ("weights_id", "data", "micro_tokens")}}
