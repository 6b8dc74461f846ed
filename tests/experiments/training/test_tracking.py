"""Mirrors, of W&B offline: what it holds, that it repeats nothing, and that it costs the run nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from elalora.errors import UserError
from experiments.config.schema import TrackerName, TrackingConfig, TrackingMode
from experiments.runtime.places import CHECKOUT
from experiments.training.tracking import Tracker, WandbTracker, check_installed, make_tracker

ROOT = CHECKOUT
RUN_ID = "0123456789abcdef" * 4
RANKS = {"encoder.layer.0.query": 4, "encoder.layer.0.dense": 4, "encoder.layer.1.query": 4, "encoder.layer.1.dense": 4}
MOVED = RANKS | {"encoder.layer.0.query": 1, "encoder.layer.1.dense": 7}
START = {"step": -1, "ranks": RANKS, "pruned": [], "grown": []}
ROUND = {
    "step": 19,
    "ranks": MOVED,
    "pruned": [["encoder.layer.0.query", slot] for slot in (3, 1, 0)],
    "grown": ["encoder.layer.1.dense"] * 3,
    "scores": {"encoder.layer.0.query": [0.25, 0.75], "encoder.layer.1.dense": []},
    "notes": {"blocked": 2},
}
RESULT = {
    "metric": "accuracy",
    "readings": {"last": {"report": {"metrics": {"accuracy": 84.5}}}},
    "counts": {"final": {"rank_sum": 16, "params": 4096}},
    "moves": {"gross_share": 0.25, "net_share": 0.1875},
    "cost": {"step_seconds_median": 0.4},
}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no settings"))


def wandb_tracker(mode: TrackingMode = TrackingMode.offline) -> WandbTracker:
    tracker = make_tracker(TrackingConfig(name=TrackerName.wandb, mode=mode))
    assert isinstance(tracker, WandbTracker)
    return tracker


def begin(folder: Path, mode: TrackingMode = TrackingMode.offline) -> WandbTracker:
    tracker = wandb_tracker(mode)
    tracker.start(folder, RUN_ID, "movies/elalora-r4-s0", {"trainer": {"lr": 1e-3}}, "movies")
    return tracker


def store(folder: Path, name: str, *lines: dict[str, Any]) -> None:
    with (folder / name).open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def loss(step: int) -> dict[str, Any]:
    return {"step": step, "split": "train", "metric": "loss", "value": 1 / (step + 1)}


def train(folder: Path, tracker: Tracker, steps: range) -> None:
    """What the trainer does: each line goes to the store first and then to the mirror."""
    for step in steps:
        if step == ROUND["step"]:
            store(folder, "ranks.jsonl", ROUND)
            tracker.round(ROUND)
        if (step + 1) % 10 == 0:
            store(folder, "metrics.jsonl", loss(step))
            tracker.metrics(step, "train", {"loss": 1 / (step + 1)})


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record of the one mirror in a folder, read by W&B's own reader."""
    [mirror] = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(mirror)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def history(folder: Path) -> dict[int, dict[str, Any]]:
    rows = [record["history"]["item"] for record in records(folder) if record["type"] == "history"]
    assert len({row["_step"] for row in rows}) == len(rows), "a step is there twice"
    return {row["_step"]: row for row in rows}


def test_nothing_is_mirrored_and_wandb_is_not_imported_by_default():
    assert type(make_tracker(TrackingConfig())) is Tracker
    program = (
        "import sys, experiments.training.tracking; assert 'wandb' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_only_the_first_process_of_a_run_mirrors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    assert type(make_tracker(TrackingConfig(name=TrackerName.wandb))) is Tracker


@pytest.mark.slow
def test_a_mirror_holds_the_identity_the_numbers_and_the_ranks(tmp_path: Path):
    store(tmp_path, "ranks.jsonl", START)
    tracker = begin(tmp_path)
    train(tmp_path, tracker, range(30))
    tracker.finish(RESULT)
    found = records(tmp_path)
    run = next(record["run"] for record in found if record["type"] == "run")
    assert (run["run_id"], run["display_name"], run["run_group"]) == (RUN_ID, "movies/elalora-r4-s0", "movies")
    assert run["config"]["update"]["trainer"] == {"lr": 1e-3}
    rows = history(tmp_path)
    assert list(rows) == [0, 9, 19, 29]
    assert rows[0]["ranks/sum"] == 16 and rows[0]["rank/encoder.layer.0.query"] == 4
    assert rows[9]["train/loss"] == 0.1
    assert rows[19]["rank/encoder.layer.0.query"] == 1 and rows[19]["train/loss"] == 0.05
    assert (rows[19]["ranks/pruned"], rows[19]["ranks/grown"], rows[19]["ranks/blocked"]) == (3, 3, 2)
    summary: dict[str, Any] = {}
    for record in found:
        summary |= record.get("summary", {}).get("update", {})
    assert (summary["score"], summary["adapter_params"], summary["gross_share"]) == (84.5, 4096, 0.25)


def test_an_interrupted_run_leaves_one_whole_history(tmp_path: Path):
    store(tmp_path, "ranks.jsonl", START)
    train(tmp_path, begin(tmp_path), range(30))  # interrupted here; the last checkpoint was at step 20
    kept = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] < 20]
    resumed = begin(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
    train(tmp_path, resumed, range(20, 50))
    resumed.finish(RESULT)
    rows = history(tmp_path)
    assert list(rows) == [0, 9, 19, 29, 39, 49]
    assert rows[19]["ranks/pruned"] == 3 and rows[39]["train/loss"] == 1 / 40


def would_sync(folder: Path) -> str:
    """What `wandb sync` says that it would upload; without --dry-run it needs a server."""
    mirrors = [str(mirror) for mirror in (folder / "wandb").glob("offline-run-*")]
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", *mirrors], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_an_interrupted_run_is_one_run_to_sync_and_none_once_it_is_marked_as_synced(tmp_path: Path):
    train(tmp_path, begin(tmp_path), range(20))
    resumed = begin(tmp_path)
    train(tmp_path, resumed, range(20, 30))
    resumed.finish(RESULT)
    said = would_sync(tmp_path)
    assert "Would sync 1 run(s)" in said and f"run-{RUN_ID}.wandb" in said
    steps = [int(record["history"]["item"]["_step"]) for record in records(tmp_path) if record["type"] == "history"]
    assert steps == sorted(set(steps)) == [9, 19, 29]
    [file] = (tmp_path / "wandb").rglob("*.wandb")
    file.with_name(f"{file.name}.synced").touch()  # as `wandb sync` leaves it
    said = would_sync(tmp_path)
    assert "Skipped 1 synced run(s)" in said and "Would sync" not in said


def test_online_a_run_that_resumes_is_the_same_run_and_no_step_is_sent_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import wandb

    asked: dict[str, Any] = {}
    sent: list[int] = []

    class Run:
        starting_step = 15  # the server has the steps before
        summary: dict[str, Any] = {}

        def log(self, values: dict[str, Any], step: int) -> None:
            sent.append(step)

        def finish(self) -> None: ...

    def init(**given: Any) -> Run:
        asked.update(given)
        return Run()

    monkeypatch.setattr(wandb, "setup", lambda **_: None)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", init)
    train(tmp_path, Tracker(), range(20))  # what the store kept of an earlier attempt
    tracker = begin(tmp_path, TrackingMode.online)
    for step in (29, 39):
        tracker.metrics(step, "train", {"loss": 0.5})
    tracker.finish(RESULT)
    assert (asked["id"], asked["mode"], asked["resume"]) == (RUN_ID, "online", "allow")
    assert sent == [19, 19, 29, 39]  # loss and round of step 19 are one row; step 9 is there already


@pytest.mark.slow
def test_a_round_shows_scores_and_the_summary_costs(tmp_path: Path):
    store(tmp_path, "ranks.jsonl", START)
    tracker = begin(tmp_path)
    train(tmp_path, tracker, range(30))
    tracker.finish(RESULT | {"cost": {"step_seconds_median": 0.4, "train_seconds": 12.0, "peak_memory_mib": None}})
    row = history(tmp_path)[19]
    assert row["scores/all._type"] == "histogram" and sum(row["scores/all.values"]) == 2
    summary: dict[str, Any] = {}
    for record in records(tmp_path):
        summary |= record.get("summary", {}).get("update", {})
    assert summary["train_seconds"] == 12.0 and "peak_memory_mib" not in summary


def test_no_secret_code_command_line_or_machine_is_in_the_mirror(tmp_path: Path):
    folder = tmp_path / "run"
    program = (
        "import platform, socket\n"
        "socket.gethostname = platform.node = lambda: 'host-marker'\n"
        "from pathlib import Path\n"
        "from experiments.config.schema import TrackerName, TrackingConfig\n"
        "from experiments.training.tracking import make_tracker\n"
        "print('printed-marker')\n"
        "tracker = make_tracker(TrackingConfig(name=TrackerName.wandb))\n"
        f"tracker.start(Path({str(folder)!r}), {RUN_ID!r}, 'name', {{}}, 'group')\n"
        "print('printed-marker')\n"
        "tracker.metrics(3, 'train', {'loss': 0.5})\n"
        f"tracker.finish({RESULT!r})\n"
    )
    script = tmp_path / "code_marker.py"
    script.write_text(program)
    environment = os.environ | {"WANDB_API_KEY": "e" * 40, "MY_TOKEN": "environment-marker", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(script), "argument-marker"], cwd=ROOT, env=environment, check=True)
    [sent] = (folder / "wandb").rglob("run-*.wandb")
    stored = [path.read_bytes() for path in (folder / "wandb").rglob("*") if path.is_file()]
    for marker in ("e" * 40, "environment-marker", "argument-marker", "printed-marker"):
        assert not any(marker.encode() in content for content in stored), marker
    host = socket.gethostname()  # a name of a few letters stands in any binary file by chance
    for marker in ("code_marker", str(ROOT), "host-marker", *([host] if len(host) > 5 else [])):
        assert marker.encode() not in sent.read_bytes(), marker
    assert not [path.name for path in (sent.parent / "files").rglob("*") if path.is_file()]


def test_a_failing_mirror_is_told_once_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tracker = begin(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device\nmore")

    tracker._run.log = fail
    for step in range(3):
        tracker.metrics(step, "train", {"loss": 0.5})
    tracker.round(ROUND)
    tracker.finish(RESULT)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "W&B" in said[0] and "(No space left on device)" in said[0]


def test_online_without_a_key_stays_offline_and_asks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tracker = begin(tmp_path, TrackingMode.online)
    train(tmp_path, tracker, range(20))
    tracker.finish(RESULT)
    [line] = capsys.readouterr().err.splitlines()
    assert "no API key; type: wandb login" in line and str(tmp_path / "wandb") in line
    assert list(history(tmp_path)) == [9, 19]


@pytest.mark.full
def test_online_without_a_network_stays_offline_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "e" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    began = time.monotonic()
    tracker = begin(tmp_path, TrackingMode.online)
    print(f"start took {time.monotonic() - began:.1f} s")
    train(tmp_path, tracker, range(20))
    tracker.finish(RESULT)
    assert list(history(tmp_path)) == [9, 19]


class Kept:
    """Stands in for a tracker of Accelerate and keeps what it is given."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.logged, self.ended = arguments, [], False
        self.configuration: dict[str, Any] = {}

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configuration = values

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged += [(step, name, value) for name, value in values.items()]

    def finish(self) -> None:
        self.ended = True


@pytest.mark.parametrize("kind", [TrackerName.tensorboard, TrackerName.trackio, TrackerName.mlflow])
def test_another_tracker_gets_the_numbers_of_earlier_attempts_and_of_this_one(
    kind: TrackerName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, kind.value, Kept)
    (tmp_path / "metrics.jsonl").write_text('{"step": 9, "split": "train", "metric": "loss", "value": 0.5}\n')
    (tmp_path / "ranks.jsonl").write_text(json.dumps(START) + "\n")
    tracker = make_tracker(TrackingConfig(name=kind))
    tracker.start(tmp_path, RUN_ID, "movies/elalora-r4-s0", {"trainer": {"lr": 1e-3}}, "movies")
    kept = tracker._run
    tracker.metrics(19, "train", {"loss": 0.25})
    tracker.round(ROUND)
    tracker.finish(RESULT | {"steps": 20})
    assert (9, "train/loss", 0.5) in kept.logged and (19, "train/loss", 0.25) in kept.logged
    assert (0, "ranks/sum", 16) in kept.logged and (19, "ranks/grown", 3) in kept.logged
    assert (19, "rank/encoder.layer.1.dense", 7) in kept.logged and (20, "summary/score", 84.5) in kept.logged
    assert kept.ended and [step for step, *_ in kept.logged] == sorted(step for step, *_ in kept.logged)
    assert (RUN_ID in kept.configuration.values()) == (kind is not TrackerName.tensorboard)


def test_a_tracker_that_is_not_installed_is_refused_with_its_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("experiments.training.tracking.find_spec", lambda name: None)
    with pytest.raises(UserError, match="tracking=trackio needs a package; type pip install trackio"):
        check_installed(TrackingConfig(name=TrackerName.trackio))
    check_installed(TrackingConfig())


def test_tensorboard_reads_its_files_in_the_run_s_folder_and_a_resumed_run_has_one_history(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (9, 19):  # two attempts
        tracker = make_tracker(TrackingConfig(name=TrackerName.tensorboard))
        tracker.start(tmp_path, RUN_ID, "movies/elalora-r4-s0", {}, "movies")
        tracker.metrics(step, "train", {"loss": step / 10})
        line = {"step": step, "split": "train", "metric": "loss", "value": step / 10}
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    tracker.finish(RESULT | {"steps": 20})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("train/loss")] == [(9, 0.9), (19, 1.9)]
    assert events.Scalars("summary/score")[0].value == 84.5
