"""Kills runs with SIGKILL, starts them again, and compares every file with a run that was never killed.

    python -m experiments.tools.kill_harness --kills 200 --seed 0
    python -m experiments.tools.kill_harness --kills 60 --seed 0 --processes 2

A child is forked after data and model are loaded, so an attempt takes a fraction of a second. A kill comes at a random
moment, or at a random call inside a named phase of the run (see kill_probe.py). With two processes the first, the
second or both are killed, under torchrun's own agent.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.tools.kill_pairs import in_pair, kill, pair_ready, reconnect, wait_for
from experiments.tools.kill_probe import NAMED, Probe, mark_rounds

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

STEPS, EVERY = 24, 3
MOVES = ["method.t_initial=3", "method.t_final=6", "method.interval=3"]
ACCUMULATION = ["trainer.micro_batch=3"]
BASE = [
    "model=local",
    "model.head=[bert.pooler,classifier]",
    f"trainer.max_steps={STEPS}",
    "trainer.batch_size=8",
    "trainer.lr=5e-3",
    "trainer.log_every=2",
    "trainer.evaluations=8",
    "task=own",
    "data.train_items=null",
    "task.max_length=16",
    "threads=1",
    f"store.checkpoint_every={EVERY}",
    "store.keep_checkpoint=true",
]
ARMS = {
    "elalora": ["method=elalora", *MOVES, *ACCUMULATION],
    "elalora official": ["method=elalora", "method.variant=official", *MOVES],
    "lora": ["method=lora", *ACCUMULATION],
    "svd_lora": ["method=svd_lora", "method.t_initial=3", "method.t_final=6", "method.interval=3"],
    "rac_lora": ["method=rac_lora", "method.blocks=4", "method.side=bernoulli"],
    "xgblora": ["method=xgblora", "method.layers=1"],
    "chain_lora": ["method=chain_lora", "method.blocks=4", *ACCUMULATION],
    "adalora": ["method=adalora", "method.t_initial=3", "method.t_final=6", "method.interval=2"],
    "sora": ["method=sora", *ACCUMULATION],
    "prilora": ["method=prilora", "method.every=4"],
    "beamlora": ["method=beamlora", "method.interval=4"],
    "flexlora": ["method=flexlora", *MOVES],
    "dora_dynamic": ["method=dora_dynamic", "method.t_initial=3", "method.t_final=6", "method.interval=2"],
    "l1ra": ["method=l1ra", "method.l1=10"],
    "alora": ["method=alora", "method.rounds=3", "method.interval=2"],
    "increlora": ["method=increlora", "method.t_initial=2", "method.interval=2"],
    "dylora": ["method=dylora", *ACCUMULATION],
    "gelora": ["method=gelora"],
    "gora": ["method=gora"],
    "eva": ["method=eva"],
    "peft": ["method=peft"],
    "full": ["method=full"],
    "head": ["method=head"],
    "bitfit": ["method=bitfit", *ACCUMULATION],
}
WRITES = ("checkpoint", "line", "result", "status")
VARYING = {"timing.jsonl", "status.json", "manifest.json", "config.yaml", "result.json", "state.json", "digests.json"}


class Arm:
    """One method's run: what is forked, and the files of the run that was never killed."""

    def __init__(self, words: list[str], folder: Path, more: list[str], processes: int = 1) -> None:
        self.words, self.folder, self.more, self.processes = words, folder, more, processes
        from experiments.runs.prepare import prepare

        self.prepared: Any = prepare(self.plan("whole"))
        self.rounds: set[int] = set()
        self.expected = self._whole("whole", Probe())
        lines = (self.plan("whole").folder.path / "ranks.jsonl").read_text() if "ranks.jsonl" in self.expected else ""
        self.rounds = {json.loads(line)["step"] for line in lines.splitlines()} - {-1}
        self.probe = Probe()
        assert self._whole("counted", self.probe) == self.expected, "two runs without a kill differ"
        self.seconds = self.took

    def _whole(self, store: str, probe: Probe) -> dict[str, Any]:
        if self.attempt(self.plan(store), probe) != 0:
            raise SystemExit((self.folder / "log").read_text())
        return files(self.plan(store).folder.path)

    def plan(self, store: str) -> Any:
        from experiments.config.compose import compose_run
        from experiments.runs.plan import make_plan

        config = compose_run([*BASE, *self.more, *self.words, f"store.root={self.folder / store}"])
        os.environ["WORLD_SIZE"] = str(self.processes)  # it is part of what a run is
        try:
            return make_plan(config)
        finally:
            del os.environ["WORLD_SIZE"]

    def attempt(self, plan: Any, probe: Probe, kill_after: float | None = None) -> int:
        """Forks a child, or two, that do the run; returns the exit code, minus the signal where one was killed."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(log, 1)
                os.dup2(log, 2)
                tempfile.tempdir = str(self.folder)  # torchrun's agent leaves files there
                code = self._children(plan, probe)
            finally:
                sys.stdout.flush()
                os._exit(abs(code))
        wait_for(lambda: len(probe.pids()) == len(probe.victims), child)
        began = time.perf_counter()
        if kill_after is not None:
            time.sleep(kill_after)
            kill(probe.pids())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.took = time.perf_counter() - began
        return -signal.SIGKILL if code == signal.SIGKILL else code  # the agent of two tells it as a number

    def _children(self, plan: Any, probe: Probe) -> int:
        if self.processes > 1:
            return in_pair(lambda: self._child(plan, probe))
        self._child(plan, probe)
        return 0

    def _child(self, plan: Any, probe: Probe) -> None:
        import traceback

        runner: Any = importlib.import_module("experiments.runs.run")
        if self.processes > 1:
            reconnect()
            self.prepared = pair_ready(self.prepared)
        runner.prepare = lambda _: self.prepared
        try:
            probe.install()
            mark_rounds(self.prepared.method, probe, self.rounds)
            runner.run(plan)
        except BaseException:
            traceback.print_exc()
            raise

    def scenario(self, number: int, most: int, draw: random.Random) -> Iterator[tuple[str, bool]]:
        """Kills one run up to `most` times, ends it and compares; yields (phase, between checkpoints) of each kill.

        Raises:
            AssertionError: the run differs from the one that was never killed.
        """
        plan = self.plan(f"killed-{number}")
        checkpoints = plan.folder.path / "checkpoint"
        for _ in range(most):
            newest = newest_step(checkpoints)
            left = 1 - (newest or 0) / STEPS
            kind = draw.choices(("moment", *NAMED), (4, 3, 5, 2, 1, 1))[0]
            victims = draw.choice(((0,), (1,), (0, 1))) if self.processes > 1 else (0,)
            if kind == "moment":
                probe, after = Probe(None, victims), self.seconds * draw.uniform(0, left)
            else:
                self.probe.victims = victims
                calls = self.probe.calls()[kind]
                if not calls:
                    continue  # a method without rounds, or a process that does not write
                most_calls = max(1, int(calls * (1 if kind == "result" else left)))
                probe, after = Probe((kind, draw.randint(1, most_calls)), victims), None
            code = self.attempt(plan, probe, after)
            if code == 0:
                break
            if code != -signal.SIGKILL:
                raise AssertionError((self.folder / "log").read_text())
            newest = newest_step(checkpoints)
            yield probe.phase, newest is not None and newest < STEPS
        else:
            if self.attempt(plan, Probe()) != 0:
                raise AssertionError((self.folder / "log").read_text())
        ended = files(plan.folder.path)
        differing = sorted(n for n in self.expected.keys() | ended.keys() if self.expected.get(n) != ended.get(n))
        assert not differing, f"{plan.folder.path} differs in {differing}"
        shutil.rmtree(self.folder / f"killed-{number}")


def newest_step(checkpoints: Path) -> int | None:
    """The step of the newest checkpoint that lies in its place."""
    return max((int(path.name[5:]) for path in checkpoints.glob("step-*")), default=None)


def files(folder: Path) -> dict[str, Any]:
    """Everything of a run that must repeat: files byte by byte, and JSON without times."""
    out: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in VARYING | {".lock"}
    }
    for path in folder.rglob("state.json"):
        state = json.loads(path.read_text())
        if "progress" in state:
            del state["progress"]["seconds"]
            del state["progress"]["lines"]["timing.jsonl"]
        out[str(path.relative_to(folder))] = state
    result = json.loads((folder / "result.json").read_text())
    result["files"] = sorted(result["files"])
    out["result.json"] = {key: value for key, value in result.items() if key not in ("cost", "commit")}
    out["steps timed"] = [json.loads(line)["step"] for line in (folder / "timing.jsonl").read_text().splitlines()]
    out["status.json"] = json.loads((folder / "status.json").read_text())["state"]
    return out


def write_data(folder: Path) -> list[str]:
    """A few made-up sentences in three fixed splits, and the overrides that name them."""
    draw = random.Random(0)
    for split, rows in (("train", 90), ("validation", 24), ("test", 24)):
        lines = ["text,label"]
        for _ in range(rows):
            label = draw.randrange(2)
            words = draw.choices(("good great fine best", "bad poor worst dull")[label].split() + ["the", "film"], k=6)
            lines.append(f"{' '.join(words)},{label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return [f"task.files.{split}={folder / split}.csv" for split in ("train", "validation", "test")]


def main() -> int:
    """Parses the command line, kills, and prints the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description="Kills runs with SIGKILL, resumes them and compares every file.")
    parser.add_argument("--kills", type=int, default=200, help="how many kills in all")
    parser.add_argument("--seed", type=int, default=0, help="of the places of the kills")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1, help="processes that do a run together")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from experiments.standins.models import make_models

    draw, began = random.Random(args.seed), time.perf_counter()
    phases: Counter[str] = Counter()
    kills = between = runs = 0
    names = args.arms.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_models(folder / "models") / "bert"
        more = [f"model.path={model}", f"data.cache={folder / 'cache'}", *write_data(folder)]
        for number, arm_name in enumerate(names):
            (folder / arm_name).mkdir()
            arm = Arm(ARMS[arm_name], folder / arm_name, more, args.processes)
            goal = round(args.kills * (number + 1) / len(names))
            while kills < goal:
                for phase, inside in arm.scenario(runs, min(4, goal - kills), draw):
                    kills, between = kills + 1, between + inside
                    phases[phase] += 1
                runs += 1
            so_far = f"{kills} kills, {runs} runs, {between} between checkpoints, every file equal; {dict(phases)}"
            print(f"{arm_name}: {so_far}", file=sys.stderr, flush=True)
    minutes = (time.perf_counter() - began) / 60
    writes = sum(phases[phase] for phase in WRITES)
    figures = {"kills": kills, "runs": runs, "between": between, "writes": writes, "phases": phases}
    print(json.dumps(figures | {"minutes": round(minutes, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
