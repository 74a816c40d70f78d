"""`amc finetune`: train the slim network of a run, or the best of its candidates; resume a stopped training.

`FineTuneState` keeps the unfinished work on disk until its result is in the run's summary.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from amc.cli.jobs.candidates import CandidatesAway
from amc.cli.jobs.devices import device_named
from amc.cli.jobs.finetune_state import FineTuneState
from amc.cli.jobs.origin import BATCH, evaluate_of, fitting, network_of, source_of
from amc.cli.jobs.training import Training
from amc.compression.answers import FinalScore
from amc.compression.inputs import Inputs
from amc.compression.job import Job
from amc.compression.load import check_builds, check_weights, load_run, settings_of
from amc.compression.observer import Observer
from amc.compression.prepare import prepare
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.scoring.workers.cluster import check_cluster, connected
from amc.compression.selection import Choice
from amc.compression.selection.base import best_first, merged
from amc.compression.selection.by_finetuning import ByFineTuning, FineTuningTrial
from amc.compression.verify import Recorded, check_record, confirmed
from amc.errors import AmcError, RunError
from amc.pruning import Policy
from amc.pruning.methods import Finishing, create_method
from amc.recovery import FineTuneConfig, FineTuneResult, resume_point
from amc.recovery.kernels import slow_bfloat16
from amc.recovery.workers import launched
from amc.report import render_report
from amc.run import files, records
from amc.run.directory import RunDir
from amc.run.records import sealed
from amc.run.settings import CandidateConfig, Given, SessionConfig, Source, spelled
from amc.search import EpisodeRecord, read_journal
from amc.structure import inspect

T = TypeVar("T")


def run_finetune(
    run_path: Path,
    config: FineTuneConfig | Given[FineTuneConfig] | None = None,
    *,
    candidates: CandidateConfig | Given[CandidateConfig] | None = None,
    session: SessionConfig | None = None,
    progress: Observer,
) -> Path:
    """Train the slim network of a finished search and add the outcome to its summary and report.

    An unfinished fine-tuning is resumed: settings that are not given keep their values, and given ones must not differ.
    With candidates, the best of them by the run's own score becomes the run's result.

    The processes of `accelerate launch` train together, and the first one writes.
    """
    session = session or SessionConfig()
    run = RunDir.open(run_path)
    source = _checked(run)
    accelerator = launched(cpu=session.device == "cpu")
    main = accelerator is None or accelerator.process_index == 0
    place = accelerator.device if accelerator else device_named(session.device)
    with run.lock() if main else nullcontext():
        state = FineTuneState(run, accelerator)
        state.plan(_given(config, FineTuneConfig), _given(candidates, CandidateConfig), session.restart)
        if session.ray is not None and state.candidate_config.candidates == 1:
            raise AmcError("ray trains candidates only; add --candidates, or leave out ray")
        watch = progress if main else Observer()
        watch.stage("network and data")
        try:
            _Task(run, source, state, place, session, watch).run()
        finally:
            watch.close()
    if accelerator is not None:
        accelerator.end_training()
    return run_path


def _given(settings: T | Given[T] | None, kind: type[T]) -> Given[T]:
    """The fields that were given: all fields of an instance, and no field of None."""
    if settings is None:
        return Given(kind)
    return settings if isinstance(settings, Given) else Given.all_of(settings)


def _checked(run: RunDir) -> Source:
    """The network and data of the run. Raises RunError if the run has nothing to fine-tune."""
    if run.config().get("schedule"):
        raise RunError(f"'{run.path}' is a schedule, which fine-tunes by itself; name one of its rounds")
    if run.config().get("sweep"):
        raise RunError(f"'{run.path}' is a sweep; name the point to train, such as {run.path / 'point-1'}")
    if not run.has(files.SUMMARY):
        raise RunError(f"'{run.path}' has no finished search yet; run `amc resume {run.path}` first")
    source = source_of(run, "train result.model with amc.finetune")
    summary = run.read_json(files.SUMMARY)  # refuses a damaged one before hours of training
    if "slim" not in summary:
        raise RunError(f"'{run.file(files.SUMMARY)}' has no slim network; restore the file from a copy")
    return source


@dataclass(frozen=True)
class _Start:
    """The network to fine-tune."""

    model: nn.Module
    method: Finishing
    choice: Choice | None = None  # of several policies
    replacing: Policy | None = None  # the chosen policy, if it replaces the run's own


class _Task:
    """One call of `run_finetune`, after its checks."""

    def __init__(
        self,
        run: RunDir,
        source: Source,
        state: FineTuneState,
        device: torch.device,
        session: SessionConfig,
        progress: Observer,
    ) -> None:
        self.origin, self.source, self.state, self.device = run, source, state, device
        self.config = settings_of(run)
        self.session, self.progress = session, progress
        distilled = state.settings.distill > 0
        self.teacher = network_of(source, run.path).to(device) if distilled else None
        self.training = Training(source, self.config, device, self.teacher)
        self.data = self.training.data
        self.example = torch.zeros(1, *self.data.input_shape)
        self.slow = slow_bfloat16(device) if state.settings.precision == "bfloat16" else None

    def run(self) -> None:
        """Choose, train, record."""
        for warning in self.state.elsewhere():
            self.progress.warning(warning)
        if self.slow:
            self.progress.warning(self.slow)
        start = self._chosen() if self.state.candidate_config.candidates > 1 else self._loaded()
        untrained = copy.deepcopy(start.model) if start.replacing else None
        self.state.save()
        self.progress.job_settings("finetune", asdict(self.state.settings))
        point = resume_point(self.state.checkpoint())
        self.progress.stage(f"fine-tuning{f', from step {point.step} of {point.total_steps}' if point else ''}")
        result = self.trained(start.model, start.method, self.state.settings, self.state.checkpoint())
        if self.state.main:
            self._record(start, untrained, result)
        self.state.clear()

    def _loaded(self) -> _Start:
        slim = load_run(self.origin.path, finetuned=False)
        config = self.config
        inputs = Inputs(slim, self.example).of_part(config.part)
        structure = inspect(inputs.model, inputs.example_input, approximate=config.approximate)
        # Locks may name channels that were sliced away; they matter only for the choice of masked weights.
        locks = {} if config.method == "channel" else {"lock": config.lock, "only": config.only}
        method = create_method(config.method, inputs.model, structure, config.method_options, **locks)
        return _Start(slim, inputs.in_whole(method, config.count) or method)

    def _chosen(self) -> _Start:
        """Train the best policies briefly, and choose the best. The network of its policy is returned untrained."""
        job = self._prepared()
        policies, count = ranked(self.origin), self.state.candidate_config.candidates
        self.state.save()
        with self._away() as away:
            training = _Candidates(self, job, self.origin.file(files.JOURNAL), min(count, len(policies)), away)
            training.begin(policies[:count])
            choice = ByFineTuning(job.problem, job.reward, training, count, self.state.measured).choose(policies)
        policy = job.policy(choice.record.keep)
        if policy.to_json() == self.origin.read_json(files.POLICY):
            return _Start(load_run(self.origin.path, finetuned=False), job.finishing, choice)
        return _Start(job.whole(job.scorer.build(choice.record.keep)), job.finishing, choice, policy)

    @contextmanager
    def _away(self) -> Iterator[CandidatesAway | None]:
        """The cluster that trains candidates; None without one."""
        if self.session.ray is None:
            yield None
            return
        check_cluster(self.session.ray)
        with connected(self.session.ray):
            yield CandidatesAway(self.training)

    def _prepared(self) -> Job:
        """The job that builds any policy of the search. Raises RunError if candidates would break a promise."""
        path = self.origin.path
        check_builds(self.origin)
        if self.config.max_drop is not None:
            raise RunError(
                f"'{path}' was searched with max-drop, and only its own result is confirmed to hold it; "
                "leave out candidates"
            )
        if self.config.times_latency:
            raise RunError(
                f"'{path}' was searched with a latency, which is measured on its own result alone; leave out candidates"
            )
        self.progress.stage("candidates")
        model, evaluate = network_of(self.source, path), evaluate_of(self.source, self.data)
        return prepare(
            Inputs(model, self.example, fitting(self.data, model).calibration.batches(BATCH), evaluate),
            replace(self.config, workers=None, ray=None),  # no policy is searched for
        )

    def trained(self, slim: nn.Module, method: Finishing, settings: FineTuneConfig, checkpoint: Path) -> FineTuneResult:
        return self.training.trained(
            slim,
            method.masks(slim),
            settings,
            checkpoint=checkpoint,
            checkpoint_every=self.session.checkpoint_every,
            accelerator=self.state.accelerator,
            watch=self.progress,
        )

    def _record(self, start: _Start, untrained: nn.Module | None, result: FineTuneResult) -> None:
        """Write the results of fine-tuning to the run. If this is interrupted, a repetition writes the same."""
        run, slim = self.origin, start.model
        summary = run.read_json(files.SUMMARY)
        test = None
        if self.source.test:
            evaluator = Evaluator(self.data.test, score=self.config.score)
            evaluator.on_batch = self.progress.stage_step
            test = FinalScore(evaluator)
        if start.choice and start.replacing and untrained is not None:
            self._describe(summary, start.choice.record, start.replacing, start.method.recount(untrained, self.example))
            summary["slim"] |= _tested(summary, test, untrained, "slim", "test")
        if start.choice:
            summary = merged(summary, start.choice.summary)
        warnings = summary.get("warnings") or []
        if self.slow and self.slow not in warnings:
            summary["warnings"] = [*warnings, self.slow]
        settings, tried = self.state.settings, self.state.candidate_config
        summary["finetuning"] = {**asdict(settings), "repeat": spelled("finetune NEW", settings, tried)}
        tuned = {"score_finetuned": result.epochs[-1].score}
        tuned |= _tested(summary, test, slim, "fine-tuned", "test_finetuned")
        slim.cpu()
        summary["slim"] |= {**start.method.recount(slim, self.example), **tuned}
        answers = None if test is None else self._answers(test, summary["slim"])
        epochs = "".join(json.dumps(sealed(asdict(epoch))) + "\n" for epoch in result.epochs)
        tuned_model = start.method.stored(slim)
        replaced = {}  # written last: an old policy marks an unfinished replacement
        if start.replacing and untrained is not None:
            replaced[files.MODEL] = start.method.stored(untrained)
            replaced[files.POLICY] = records.json_bytes(start.replacing.to_json())
        if warnings := self.state.elsewhere():
            summary["warnings"] = [*(summary.get("warnings") or ()), *warnings]
        digests = {
            name: hashlib.sha256(data).hexdigest()
            for name, data in {files.MODEL_FINETUNED: tuned_model, **replaced}.items()
        }
        summary["files"] = {**summary.get("files", {}), **digests}
        run.write_bytes(files.MODEL_FINETUNED, tuned_model)
        run.write_text(files.FINETUNE, epochs)
        if answers:
            run.write_json(files.ANSWERS, answers)
        run.write_json(files.SUMMARY, summary)
        for name, data in replaced.items():
            run.write_bytes(name, data)
        render_report(run)
        self.progress.job_result(summary)

    def _answers(self, test: FinalScore, slim: dict[str, Any]) -> dict[str, Any] | None:
        """What the dense network and the fine-tuned one answer on the test split: the new content of answers.json.

        The dense network is scored again: nothing of a finished run then decides what is written here. Without its
        weights, which fine-tuning itself does not need, there are no answers. `slim` gets the standard errors of its
        scores.
        """
        dense = self.teacher
        if dense is None:
            try:
                dense = network_of(self.source, self.origin.path)
                check_weights(self.origin, dense)
            except AmcError:
                return None
        test(dense.to(self.device), "dense")
        scores = {"test": "slim", "test_finetuned": "fine-tuned"}
        return test.recorded(slim, scores, name="finetuned", which="fine-tuned")

    @staticmethod
    def _describe(summary: dict[str, Any], record: EpisodeRecord, policy: Policy, costs: Mapping[str, int]) -> None:
        """Replace the search's best policy by the chosen one."""
        summary["slim"] = {**costs, "score": record.score}
        for name in ("recovery", "finalists"):  # of the network that is replaced
            summary.pop(name, None)
        summary["groups"] = [{"name": group.name, "size": group.size, "kept": group.kept} for group in policy.groups]


@dataclass(frozen=True)
class _Candidates:
    """The `Training` of several policies: each is built, trained and recorded in turn."""

    task: _Task
    job: Job
    journal: Path
    count: int
    away: CandidatesAway | None = None

    def begin(self, records: Sequence[EpisodeRecord]) -> None:
        """On a cluster, train all candidates beside each other that no earlier session has trained."""
        if self.away is None:
            return
        for number, record in enumerate(records):
            if number >= len(self.task.state.measured):
                slim = self.job.whole(self.job.scorer.build(record.keep))
                self.away.begin(number, slim, self.job.finishing.masks(slim), self._settings)

    @property
    def _settings(self) -> FineTuneConfig:
        state = self.task.state
        return replace(state.settings, epochs=state.candidate_config.candidate_epochs)

    def recheck(self, record: EpisodeRecord, number: int) -> EpisodeRecord:
        """The policy with the present score of its network. Raises RunError if the journal was changed."""
        watch = self.task.progress
        watch.stage(f"candidate {number + 1} of {self.count} (episode {record.episode})")
        check_record(self.journal, record, self.job)
        slim = self.job.scorer.build(record.keep)
        record, warnings = confirmed(self.job, record, slim, Recorded.at([self.journal]))
        for warning in warnings:
            watch.warning(warning)
        return record

    def train(self, record: EpisodeRecord, number: int) -> float:
        """The score after a short training."""
        if self.away is not None:
            return self.away.score(number)
        slim = self.job.whole(self.job.scorer.build(record.keep))
        self.task.progress.job_part(f"candidate-{number + 1}")
        try:
            checkpoint = self.task.state.checkpoint(number)
            result = self.task.trained(slim, self.job.finishing, self._settings, checkpoint)
        finally:
            self.task.progress.job_part("")
        return float(result.epochs[-1].score or 0.0)

    def keep(self, trial: FineTuningTrial, number: int) -> FineTuningTrial:
        """Record the trial, for a later session and for the other processes."""
        state = self.task.state
        if trial.error is not None:
            self.task.progress.warning(f"candidate {number + 1} is left out: {trial.error}")
        state.measured.append(trial.to_json())
        state.save()
        if state.main:
            state.checkpoint(number).unlink(missing_ok=True)
        return FineTuningTrial.from_json(state.measured[number], trial.record)


def ranked(run: RunDir) -> Sequence[EpisodeRecord]:
    """The distinct policies of a finished search in its own order, the best first.

    An older run has not recorded this order: its rewards decide. RunError if no policy has a reward.
    """
    run.verify(files.JOURNAL)
    _, episodes = read_journal(run.file(files.JOURNAL))
    scored = {record.episode: record for record in episodes if record.reward is not None}
    if not scored:
        raise RunError(f"'{run.path}' has no scored policy to choose from; search again")
    order = run.read_json(files.SUMMARY).get("ranked")
    if not order:
        return best_first(episodes)
    unknown = [number for number in order if number not in scored]
    if unknown:
        raise RunError(
            f"'{run.file(files.SUMMARY)}' ranks episode {unknown[0]}, which has no score in {files.JOURNAL}; "
            "restore the file from a copy"
        )
    return [scored[number] for number in order]


def _tested(
    summary: dict[str, Any], test: FinalScore | None, network: nn.Module, which: str, key: str
) -> dict[str, float]:
    """The test score under `key`; if it fails, nothing, and a warning in the summary says why."""
    if test is None:
        return {}
    value, warnings = test(network, which)
    known = summary.get("warnings") or []
    summary["warnings"] = [*known, *(line for line in warnings if line not in known)]
    return {} if value is None else {key: value}
