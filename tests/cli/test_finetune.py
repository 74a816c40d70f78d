"""`amc finetune`: what it adds to a run, going on where it was stopped, choosing among candidates."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from amc.cli.jobs.finetune import _Task, ranked, run_finetune
from amc.compression.load import load_run
from amc.compression.progress import ProgressBar
from amc.compression.scoring.evaluator import Evaluator
from amc.compression.selection import by_finetuning
from amc.errors import RunError
from amc.pruning import GroupPolicy, Policy
from amc.recovery import resume_point
from amc.run import directory as rundir
from amc.run.directory import RunDir
from amc.run.settings import CandidateConfig, FineTuneConfig, SessionConfig
from amc.search import EpisodeRecord
from amc.search.statistics import compare
from amc.zoo import create_model, load_data, load_weights
from tests.commands import AS_PRUNED, amc, contents

QUICK = (
    *("--search-images", 120, "--calibration-images", 64, "--bn-images", 32, "--certify", 0, "--no-test"),
    *AS_PRUNED,
)
TUNED = ("summary.json", "model-finetuned.safetensors", "model.safetensors", "policy.json")
TRAINING = ("--epochs", 3, "--batch-size", 64, "--checkpoint-every", 5)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search with several policies."""
    out = tmp_path_factory.mktemp("finetune") / "run"
    assert amc("search", "digits_cnn", "--out", out, "--episodes", 12, "--agent", "random", *QUICK).code == 0
    return out


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search with masks."""
    out = tmp_path_factory.mktemp("masked") / "run"
    done = amc("search", "digits_cnn", "--out", out, "--method", "fine-grained", "--episodes", 4, *QUICK)
    assert done.code == 0, done.stderr
    return out


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched, tmp_path / "run"))


def outcome(run: Path) -> list[Any]:
    """What does not depend on the clock."""
    lines = [json.loads(line) for line in (run / "finetune.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key not in ("seconds", "sha256")} for line in lines]
    return [kept, *((run / name).read_bytes() for name in TUNED)]


def summary(run: Path) -> Any:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def under_way(run: Path) -> set[str]:
    return {path.name for path in run.iterdir() if "ckpt" in path.name or "state" in path.name}


def when_step(path: Path, step: int) -> Callable[[], bool]:
    """Whether the checkpoint holds that many steps."""

    def now() -> bool:
        point = resume_point(path)
        return point is not None and point.step >= step

    return now


def test_the_summary_tells_of_the_last_epoch(run: Path) -> None:
    done = amc("finetune", run, *TRAINING, "--optimizer", "adamw", "--ema", 0.9, "--precision", "bfloat16", "--json")
    assert done.code == 0, done.stderr
    lines = [json.loads(line) for line in (run / "finetune.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert done.json["slim"]["score_finetuned"] == lines[-1]["score"]
    model = load_run(run)
    assert Evaluator(load_data("digits", search_images=120).search)(model) == lines[-1]["score"]
    assert under_way(run) == set()
    for name in ("policy.json", "model.safetensors", "journal.jsonl"):
        assert (run / name).exists()


def test_the_answers_are_those_of_the_fine_tuned_network_and_need_the_dense_weights(tmp_path: Path) -> None:
    weights, out, data = tmp_path / "w.safetensors", tmp_path / "run", load_data("digits")
    save_file(create_model("digits_cnn").state_dict(), weights)
    model = [word for word in QUICK if word != "--no-test"]
    searched = amc(
        "search", "digits_cnn", "--weights", weights, "--out", out, "--episodes", 3, "--recover", "none", *model
    )
    assert searched.code == 0, searched.stderr
    untrained = json.loads((out / "answers.json").read_text())
    assert set(untrained) >= {"dense", "slim"}
    assert "finetuned" not in untrained
    without = Path(shutil.copytree(out, tmp_path / "without"))
    assert amc("finetune", out, "--epochs", 1).code == 0
    record, slim = json.loads((out / "answers.json").read_text()), summary(out)["slim"]
    test = Evaluator(data.test)
    dense = create_model("digits_cnn")
    load_weights(dense, weights)
    right, kept = test.correct(dense.eval()), test.correct(load_run(out))
    labels = data.test.labels
    assert record["dense"]["right"] == torch.bincount(labels[right], minlength=10).tolist()
    assert record["finetuned"]["right"] == torch.bincount(labels[kept], minlength=10).tolist()
    assert record["finetuned"]["lost"] == torch.bincount(labels[right & ~kept], minlength=10).tolist()
    assert slim["test_finetuned"] == int(kept.sum()) / len(labels)
    assert slim["test_finetuned_error"] == compare(right, kept).standard_error
    weights.unlink()
    assert amc("finetune", without, "--epochs", 1).code == 0  # the slim network is all that is trained
    assert json.loads((without / "answers.json").read_text()) == untrained
    assert summary(without)["slim"].get("test_finetuned_error") is None
    assert summary(without)["slim"]["test_finetuned"] == slim["test_finetuned"]


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_stopped_twice_it_ends_as_if_it_had_not_been(searched: Path, tmp_path: Path, kill: signal.Signals) -> None:
    whole, run = (Path(shutil.copytree(searched, tmp_path / name)) for name in ("whole", "run"))
    assert amc("finetune", whole, *TRAINING, "--ema", 0.95).code == 0
    options: tuple[Any, ...] = (*TRAINING, "--ema", 0.95)
    for step in (10, 30):
        before = contents(run)
        ended = amc("finetune", run, *options, kill_when=when_step(run / "finetune.ckpt", step), kill_with=kill)
        assert ended.code == (130 if kill == signal.SIGINT else -signal.SIGKILL), ended.stderr
        if kill == signal.SIGINT:
            assert re.fullmatch(
                rf"amc: interrupted; the fine-tuning is stored up to step \d+ of 45; `amc finetune {run}` goes on",
                ended.stderr.splitlines()[-1],
            )
        assert under_way(run) >= {"finetune.ckpt", "finetune-state.json"}
        assert {name: value for name, value in before.items() if name in TUNED}.items() <= contents(run).items()
        options = ("--checkpoint-every", 5)  # the rest is as it was
    done = amc("finetune", run)
    assert done.code == 0, done.stderr
    assert "· fine-tuning, from step " in done.stderr
    assert outcome(run) == outcome(whole)
    assert under_way(run) == set()


def test_another_setting_is_refused_until_restarted(run: Path) -> None:
    amc("finetune", run, *TRAINING, kill_when=when_step(run / "finetune.ckpt", 5))
    before = contents(run)
    complaint = amc("finetune", run, "--lr", 0.01).complaint
    assert complaint == (
        f"'{run}' has a fine-tuning under way with lr 0.05, not 0.01; go on with it by `amc finetune {run}`, "
        "or add --restart to begin anew"
    )
    assert "with candidates 1, not 2;" in amc("finetune", run, "--candidates", 2).complaint
    assert contents(run) == before
    done = amc("finetune", run, "--epochs", 1, "--restart", "--json")
    assert done.code == 0, done.stderr
    assert len((run / "finetune.jsonl").read_text().splitlines()) == 1


def test_a_checkpoint_whose_settings_are_lost_is_forgotten_only_when_asked(run: Path) -> None:
    amc("finetune", run, *TRAINING, kill_when=when_step(run / "finetune.ckpt", 5))
    (run / "finetune-state.json").unlink()
    before = contents(run)
    assert "add --restart to begin anew" in amc("finetune", run, "--epochs", 1).complaint
    assert contents(run) == before
    assert amc("finetune", run, "--epochs", 1, "--restart").code == 0
    assert len((run / "finetune.jsonl").read_text().splitlines()) == 1


def test_damage_is_reported_and_restart_begins_again(run: Path) -> None:
    amc("finetune", run, *TRAINING, kill_when=when_step(run / "finetune.ckpt", 5))
    state, checkpoint = run / "finetune-state.json", run / "finetune.ckpt"
    good = state.read_bytes()
    for text in ('{"settings": {"epochs": 3}}', '{"settings": {"speed": 3}}', "[]", "{"):
        state.write_text(text)
        assert "finetune-state.json'" in amc("finetune", run).complaint
    state.write_bytes(good)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    complaint = amc("finetune", run).complaint
    assert f"checkpoint '{checkpoint}' is damaged (" in complaint
    assert "--restart" in complaint
    assert amc("finetune", run, "--epochs", 1, "--restart").code == 0


def test_a_full_disk_keeps_the_last_checkpoint(run: Path) -> None:
    complaint = amc("finetune", run, *TRAINING, bytes_left=300_000).complaint
    assert "no space left to write" in complaint
    point = resume_point(run / "finetune.ckpt")
    assert point is None or point.step > 0
    assert amc("finetune", run).code == 0
    assert len((run / "finetune.jsonl").read_text().splitlines()) == 3


def test_a_loss_that_turns_nan_says_what_to_do(run: Path) -> None:
    options = (*TRAINING, "--lr", 1e12, "--clip-norm", 0, "--warmup", 0.9)
    before = contents(run)
    complaint = amc("finetune", run, *options).complaint
    assert "fine-tuning diverged: " in complaint
    assert "lower the learning rate (1e+12)" in complaint
    assert before.items() <= contents(run).items()
    assert amc("finetune", run, "--epochs", 1, "--restart").code == 0


def test_a_last_step_that_ruins_the_network_says_what_to_do(run: Path) -> None:
    """One step an epoch: no loss is left to show it."""
    before = contents(run)
    complaint = amc("finetune", run, "--epochs", 1, "--batch-size", 10_000, "--lr", 1e30).complaint
    assert complaint == (
        "fine-tuning diverged: the network's logits are NaN in epoch 1; lower the learning rate (1e+30). "
        "The network is as it was before that epoch"
    )
    assert before.items() <= contents(run).items()
    assert amc("finetune", run, "--epochs", 1, "--lr", 0.01).code == 0


@pytest.mark.parametrize("promise", [{"budget": "latency<=90%"}, {"runtime": "onnxruntime"}])
def test_candidates_are_refused_if_the_result_was_measured(run: Path, promise: dict[str, str]) -> None:
    config = json.loads((run / "config.json").read_text())
    del config["sha256"]
    (run / "config.json").write_text(json.dumps(config | promise))
    before = contents(run)
    assert amc("finetune", run, "--candidates", 3, "--epochs", 1).complaint == (
        f"'{run}' was searched with a latency, which is measured on its own result alone; leave out candidates"
    )
    assert contents(run) == before


def test_options_out_of_range(run: Path) -> None:
    before = contents(run)
    for options, part in (
        (("--optimiser", "adam"), "fine-tuning optimiser is out of range: adam"),
        (("--ema", 1), "fine-tuning ema is out of range: 1.0"),
        (("--precision", "float16", "--device", "cpu"), "float16 training needs a CUDA device"),
        (("--candidates", 0), "candidates must be at least 1, got 0"),
        (("--candidate-epochs", 0), "candidate-epochs must be at least 1, got 0"),
        (("--device", "tpu!"), "device 'tpu!' is malformed; write auto, cpu, cuda or cuda:1"),
        (("--device", "cuda:99"), "device 'cuda:99' is not there"),
    ):
        assert part in amc("finetune", run, *options).complaint
        assert before.items() <= contents(run).items()


CANDIDATES = ("--candidates", 3, "--epochs", 2, "--batch-size", 64, "--checkpoint-every", 5)


@pytest.fixture(scope="module")
def chosen_run(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(searched, tmp_path_factory.mktemp("candidates") / "run"))
    done = amc("finetune", run, *CANDIDATES)
    assert done.code == 0, done.stderr
    assert "· candidate 3 of 3 (episode " in done.stderr
    assert done.stdout.count("taken on") == 1
    return run


def test_the_best_after_a_short_training_is_taken_on(chosen_run: Path, searched: Path) -> None:
    journal = [json.loads(line) for line in (chosen_run / "journal.jsonl").read_text().splitlines()[1:]]
    ranked = sorted(journal, key=lambda line: (-line["reward"], line["episode"]))
    distinct = list({tuple(line["keep"]): line for line in reversed(ranked)}.values())[::-1]
    found = summary(chosen_run)["candidates"]
    assert [entry["keep"] for entry in found] == [line["keep"] for line in distinct[:3]]
    assert [entry["score"] for entry in found] == [line["score"] for line in distinct[:3]]
    best = max(found, key=lambda entry: entry["score_tuned"])
    (chosen,) = (entry for entry in found if entry["chosen"])
    assert chosen["score_tuned"] == best["score_tuned"]
    assert chosen is not found[0]
    policy = json.loads((chosen_run / "policy.json").read_text())
    assert [len(group["keep"]) for group in policy["groups"]] == chosen["keep"]
    assert [group["kept"] for group in summary(chosen_run)["groups"]] == chosen["keep"]
    assert summary(chosen_run)["slim"]["score"] == chosen["score"]
    assert summary(chosen_run)["slim"]["macs"] <= 0.5 * summary(chosen_run)["dense"]["macs"]
    assert under_way(chosen_run) == set()
    data = load_data("digits", search_images=120)
    assert Evaluator(data.search)(load_run(chosen_run)) == summary(chosen_run)["slim"]["score_finetuned"]
    assert Evaluator(data.search)(load_run(chosen_run, finetuned=False)) == chosen["score"]
    assert (chosen_run / "journal.jsonl").read_bytes() == (searched / "journal.jsonl").read_bytes()


def with_order(run: Path, change: Callable[[list[int]], list[int] | None]) -> RunDir:
    """The run with another order of its policies in summary.json; None: without one, as runs of before."""
    record = summary(run)
    del record["sha256"]
    order = change(record.pop("ranked"))
    (run / "summary.json").write_text(json.dumps(record if order is None else {**record, "ranked": order}))
    return RunDir.open(run)


def test_candidates_are_taken_in_the_order_of_the_search(run: Path) -> None:
    """It is that of expected scores, of which the journal knows nothing."""
    with_order(run, lambda order: order[::-1])
    done = amc("finetune", run, "--candidates", 2, "--epochs", 1, "--json")
    assert done.code == 0, done.stderr
    assert [line["episode"] for line in done.json["candidates"]] == done.json["ranked"][:2]


def test_an_older_run_ranks_its_policies_by_their_rewards(run: Path) -> None:
    order = summary(run)["ranked"]
    policies = ranked(with_order(run, lambda order: None))
    assert [record.episode for record in policies] == order  # the random agent knows no better than the scores


def test_an_order_that_does_not_fit_the_journal_is_refused(run: Path) -> None:
    with pytest.raises(
        RunError, match=r"summary\.json' ranks episode 99, which has no score in journal\.jsonl; restore"
    ):
        ranked(with_order(run, lambda order: [order[0], 99]))


def test_candidates_stopped_anywhere_end_the_same(chosen_run: Path, run: Path) -> None:
    """In the first candidate, between two, and in the fine-tuning proper."""
    before = {name: (run / name).read_bytes() for name in ("policy.json", "model.safetensors", "summary.json")}
    moments = (
        when_step(run / "finetune-candidate-0.ckpt", 5),
        (run / "finetune-candidate-1.ckpt").exists,
        when_step(run / "finetune.ckpt", 10),
    )
    for moment in moments:
        ended = amc("finetune", run, *CANDIDATES, kill_when=moment)
        assert ended.code == -signal.SIGKILL, ended.stderr
        assert {name: (run / name).read_bytes() for name in before} == before
    assert amc("finetune", run).code == 0
    assert outcome(run) == outcome(chosen_run)


class Killed(BaseException):
    """Like a SIGKILL: nothing in the library handles it."""


def test_candidates_stopped_while_the_result_is_written(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each file in turn; the third candidate takes the place of the search's best."""
    monkeypatch.setattr(by_finetuning, "best_of", lambda trials: 2)
    real = rundir.atomic_write_bytes
    whole, run = (Path(shutil.copytree(searched, tmp_path / name)) for name in ("whole", "run"))

    def tune(path: Path) -> None:
        silent = ProgressBar(Console(file=io.StringIO()))
        run_finetune(
            path,
            FineTuneConfig(epochs=1),
            candidates=CandidateConfig(3),
            session=SessionConfig(checkpoint_every=0, device="cpu"),
            progress=silent,
        )

    tune(whole)
    assert all(
        (whole / name).read_bytes() != (searched / name).read_bytes() for name in ("policy.json", "summary.json")
    )
    results = ("model-finetuned.safetensors", "finetune.jsonl", "summary.json", "model.safetensors", "policy.json")
    for last in results:

        def killed(path: Path, data: bytes, last: str = last) -> None:
            real(path, data)
            if Path(path).name == last:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(rundir, "atomic_write_bytes", killed)
            with pytest.raises(Killed):
                tune(run)
    tune(run)
    assert outcome(run)[1:] == outcome(whole)[1:]
    assert under_way(run) == set()


def test_masks_hold(masked: Path) -> None:
    done = amc("finetune", masked, *TRAINING, "--json")
    assert done.code == 0, done.stderr
    tuned, plain = load_run(masked), load_run(masked, finetuned=False)
    kept = 0
    policy = json.loads((masked / "policy.json").read_text())
    for group in policy["groups"]:
        first, second = (model.get_submodule(group["name"]).weight.detach() for model in (plain, tuned))
        assert torch.equal(first != 0, second != 0)
        assert int(torch.count_nonzero(second)) == group["kept"]  # type: ignore[arg-type]
        assert not torch.equal(first, second)
        kept += group["size"] - group["kept"]
    assert kept > 0
    assert done.json["slim"]["macs"] <= 0.5 * done.json["dense"]["macs"]
    assert (masked / "model-finetuned.safetensors").stat().st_size == done.json["slim"]["size"]


def test_a_candidate_does_not_keep_the_recovery_of_the_network_that_it_replaces() -> None:
    summary = {"slim": {"macs": 9, "score": 0.5, "score_recovered": 0.8}, "recovery": {"reason": None}, "seed": 0}
    record = EpisodeRecord(2, (3,), {"macs": 4.0}, 0.6, -0.4)
    policy = Policy((GroupPolicy("a", 8, (0, 1, 2)),))
    _Task._describe(summary, record, policy, {"macs": 4})
    assert summary == {
        "slim": {"macs": 4, "score": 0.6}, "groups": [{"name": "a", "size": 8, "kept": 3}], "seed": 0,
    }  # fmt: skip
