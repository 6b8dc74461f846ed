"""A store of schema 1 is migrated: new ids and names, the same scores; nothing is lost, also not by a kill."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import config

from elalora.errors import UserError
from experiments.__main__ import main
from experiments.runs import migration
from experiments.runs.migration import ASIDE, migrate
from experiments.runs.plan import Plan, make_plan
from experiments.standins.stored_runs import result, write_run
from experiments.store.compaction import compact
from experiments.store.finished import id_of
from experiments.store.folder import SCHEMA, RunFolder, dump


def schema_1(root: Path, plan: Plan, score: float, typed: dict[str, Any], **method: Any) -> tuple[str, Path]:
    """Writes a run as schema 1 did, with settings as they were typed; returns its id and folder."""
    identity = json.loads(json.dumps(plan.identity))
    identity["method"] |= method
    identity["trainer"] |= {"log_every": 10, "evaluations": 0, "epochs": 3.0}
    identity["model"]["matrices"] = 36
    identity["task"] |= {"citation": "somebody", "beams": 4}
    identity |= typed
    method_name = identity["method"]["name"]
    whole = result(method_name, identity["seed"], score, schema=1, identity=identity)
    folder = write_run(root, whole | {"id": id_of(identity)})
    (folder / "result.json").write_text(dump(whole))
    (folder / "predictions.parquet").write_bytes(PREDICTIONS)
    (folder / "config.yaml").write_text("model:\n  name: minilm\n  path: embedded\noverrides: []\n")
    (folder / "metrics.jsonl").write_text("")
    (folder / "timing.jsonl").write_text("")
    return whole["id"], folder


def _predictions() -> bytes:
    import io

    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    columns = {"idx": [0], "label": [1], "prediction": [1], "score": [0.5]}
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()


PREDICTIONS = _predictions()


@pytest.fixture(scope="module")
def plans() -> tuple[Plan, Plan]:
    """ElaLoRA, and SVD-LoRA with its final ranks."""
    return make_plan(config("method=elalora")), make_plan(config("method=svd_lora", "method.ranks_from=elalora"))


@pytest.fixture
def store(plans: tuple[Plan, Plan], tmp_path: Path) -> Path:
    """ElaLoRA twice, as D1=null and as D1=false, and the transplant of each."""
    root = tmp_path / "runs"
    for D1, score in ((None, 81.0), (False, 81.0)):
        source, folder = schema_1(root, plans[0], score, {}, D1=D1)
        schema_1(root, plans[1], 82.0, {}, ranks_from=source)
        if D1 is None:
            (folder / "contributions.json").write_text(json.dumps({"schema": 1, "id": source}))
    return root


def scores(root: Path) -> dict[str, float]:
    found = {}
    for path in root.glob("*/*/result.json"):
        whole = RunFolder(path.parent).result()
        found[whole["id"]] = whole["readings"]["last"]["report"]["metrics"]["accuracy"]
    return found


def test_runs_get_the_ids_that_their_commands_have_now(store: Path, plans: tuple[Plan, Plan]) -> None:
    before = {path.name for path in store.glob("[!.]*/*")}
    lines = migrate([store])
    assert scores(store) == {plans[0].id: 81.0, plans[1].id: 82.0}
    assert {path.name for path in store.glob("[!.]*/*")} == {str(plan.name) for plan in plans}
    aside = {path.parent.name: path.parent for path in (store / ASIDE).glob("*/*/result.json")}
    assert aside.keys() == before  # the originals
    assert all(json.loads((path / "result.json").read_text())["schema"] == 1 for path in aside.values())
    pairs = [line for line in lines if "same computation" in line]
    assert len(pairs) == 2 and all("are equal" in line and line.count("-s0-") >= 3 for line in pairs)
    kept = next(store.glob("*/elalora-*"))
    assert json.loads((kept / "contributions.json").read_text())["id"] == plans[0].id  # the one that was measured stays


def test_a_second_migration_changes_nothing(store: Path) -> None:
    migrate([store])
    files = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert migrate([store]) == [f"{store}: nothing to migrate"]
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("last", range(0, 11, 2))
def test_a_killed_migration_is_repeated(
    store: Path, plans: tuple[Plan, Plan], last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies at every other change of the disk."""
    left = last

    def dying(act: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return act(*args)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(migration, "write_whole", dying(migration.write_whole))
        patch.setattr(Path, "rename", dying(Path.rename))
        with pytest.raises(KeyboardInterrupt):
            migrate([store])
    migrate([store])
    assert scores(store) == {plans[0].id: 81.0, plans[1].id: 82.0}
    assert len(list((store / ASIDE).glob("*/*/result.json"))) == 4


def test_a_compact_store_is_migrated_like_its_runs(store: Path, plans: tuple[Plan, Plan], tmp_path: Path) -> None:
    packed, old = tmp_path / "packed", SCHEMA - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.store.folder.SCHEMA", old)
        compact([store], packed)
    for command in (["status", str(packed)], ["compact", str(store), "--out", str(packed)]):
        assert main(command) == 2
    assert main(["migrate", str(packed)]) == 0
    from experiments.store.compact import opened

    assert scores(opened(packed)) == {plans[0].id: 81.0, plans[1].id: 82.0}
    shutil.rmtree(packed / ASIDE)
    migrate([store])
    compact([store], tmp_path / "again")
    assert {p.name for p in opened(packed).glob("*/*")} == {p.name for p in opened(tmp_path / "again").glob("*/*")}


def test_scores_that_differ_are_said(plans: tuple[Plan, Plan], tmp_path: Path) -> None:
    schema_1(tmp_path, plans[0], 81.0, {}, D1=None)
    schema_1(tmp_path, plans[0], 79.0, {}, D1=False)
    (line,) = (line for line in migrate([tmp_path]) if "same computation" in line)
    assert "DIFFER" in line and "81.0" in line and "79.0" in line


def test_a_run_whose_source_is_elsewhere_is_left_and_named(plans: tuple[Plan, Plan], tmp_path: Path) -> None:
    _, folder = schema_1(tmp_path, plans[1], 82.0, {}, ranks_from="0" * 64)
    lines = migrate([tmp_path])
    assert any(str(folder) in line and "ranks_from" in line for line in lines)
    assert json.loads((folder / "result.json").read_text())["schema"] == 1


def test_an_older_run_is_never_silently_not_done(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(config("method=elalora", f"store.root={store}"))
    with pytest.raises(UserError, match=re.escape(f"python -m experiments migrate {store}")):
        plan.finished()
    assert make_plan(config("method=elalora", "seed=5", f"store.root={store}")).finished() is None
    assert main(["status", str(store)]) == 0
    said = capsys.readouterr().out
    assert "4 older" in said and f"migrate {store}" in said and "done" not in said.splitlines()[0]
    migrate([store])
    assert plan.finished() is not None
