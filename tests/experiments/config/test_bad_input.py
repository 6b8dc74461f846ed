"""A table of wrong inputs: each is one clear line and exit code 2, without a traceback, and nothing is written."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from tiny_runs import MOVES, QUICK

import run
from experiments.config.compose import compose_run
from experiments.config.explain import explain
from experiments.config.mistakes import MISTAKES
from experiments.config.suggest import for_text
from experiments.runtime.places import CONF

OVERRIDES = [
    ["trainer.lr"], ["=3"], ["trainer.lr=[1,"], ["method.k={a"], ["trainer.lr=1=2", "x=("],
    ["trainerr.lr=1"], ["trainer.learning_rate=1"], ["~trainer.nothing"], ["seed='"],
]  # fmt: skip
CONFIGS = [
    ["method=elolora"], ["task=colla"], ["protocol=dirty"], ["trainer=slow"], ["model=gpt9"], ["tracking=aim"],
    ["trainer.batch_size=0"], ["trainer.batch_size=many"], ["trainer.max_steps=0"], ["trainer.lr=-1"],
    ["trainer.lr=nan"], ["trainer.precision=fp16"], ["trainer.schedule=zigzag"], ["trainer.micro_batch=0"],
    ["trainer.weight_decay=-1"], ["trainer.max_grad_norm=0"], ["trainer.warmup=30"], ["trainer.log_every=0"],
    ["method.k=0"], ["method.beta1=2"], ["method.unknown=1"], ["method.k=abc"], ["task.metrics=[beauty]"], ["seed=x"],
]  # fmt: skip
BUDGETS = [
    ["budget=r0"], ["budget=r65"], ["budget=4"], ["budget.rank=0"], ["budget.rank=-2"], ["budget.rank=two"],
    ["budget.rank=null"], ["budget=params"], ["budget=params", "budget.params=-5"], ["budget=r4", "budget.params=9"],
    ["budget=params", "budget.params=1"],
]  # fmt: skip
# what a new user types -> what the answer offers, as it can be pasted into a shell
ADVICE = {
    ("method=elalora,", "lora"): "type method=elalora,lora",
    ("method", "elalora"): "type method=elalora",
    ("elalora",): "type method=elalora",
    ("trainer.lr", "=", "1e-3"): "type trainer.lr=1e-3",
    ("trainer.lr=", "1e-3"): "type trainer.lr=1e-3",
    ("trainer.lr:1e-3",): "type trainer.lr=1e-3",
    ("trainer.lr=1e-3;",): "type trainer.lr=1e-3",
    ("trainer.lr=0,001",): "for a number type trainer.lr=0.001",
    ("--method", "elalora"): "settings have no dashes: type method=elalora",
    ("--seed=3",): "settings have no dashes: type seed=3",
    ("--lr", "1e-3"): "settings have no dashes: type trainer.lr=1e-3",
    ("–m",): "type -m with plain dashes",
    ("—plan",): "type --plan with plain dashes",
    ("method=“lora”",): "type method=lora",
    ("lr=1e-3",): "type trainer.lr=1e-3",
    ("rank=8",): "type budget=r8",
    ("r=8",): "type budget=r8",
    ("method.rank=8",): "type budget=r8",
    ("budget=8",): "type budget=r8",
    ("budget=R4",): "type budget=r4",
    ("budget=r100",): "type budget=r4 budget.rank=100",
    ("epochs=3",): "type trainer.epochs=3",
    ("method.lr=1e-3",): "type trainer.lr=1e-3",
    ("trainer.learning_rate=1e-3",): "type trainer.lr=1e-3",
    ("output_dir=x",): "type store.root=x",
    ("wandb=true",): "type tracking=wandb",
    ("files.train=a.csv",): "type task.files.train=a.csv",
    ("task.train=a.csv",): "type task.files.train=a.csv",
    ("trainer=1e-3",): "'trainer=1e-3' is not valid: expected GROUP=NAME",
    ("task=RTE",): "did you mean rte?",
    ("task=rte#1",): "cannot be read as an override; type task=rte",
    ("method=lora#1",): "cannot be read as an override; type method=lora",
    ("trainer=zzz!",): "cannot be read as an override; allowed: quick, standard",
    ("method=",): "method= is unknown; allowed: adalora, alora, beamlora",
    ("model=https://huggingface.co/owner/name",): "type model=local model.path=owner/name model.revision=COMMIT",
    ("task=https://example.org/train.csv",): "it is a URL: download it, and type task.files.train=PATH",
    ("task=vader_movies", "task.files.train=a.csv"): "type task=own task.files.train=a.csv",
    ("store.root=",): "store.root= is empty; type store.root=PATH, or leave it out",
    ("data.cache=",): "data.cache= is empty; type data.cache=PATH",
    ("model.path= ",): "model.path= is empty; type model.path=PATH",
    ("task=own", "task.files.train="): "task.files.train= is empty; type task.files.train=PATH",
    ("store.root=null",): "store.root=null is not allowed; give it a value, or leave it out",
    ("seed=null",): "seed=null is not allowed; give it a value",
    ("store.root=s3://bucket/runs",): "store.root=s3://bucket/runs is a URL; type store.root=PATH of a copy",
    ("task=own", "task.files.train=https://example.org/a.csv"): "a.csv is a URL; type task.files.train=PATH of a copy",
    ("model.path=https://huggingface.co/owner/name",): "is a URL; type model.path=owner/name",
    ("task=own", "task.text=[Review", "text]"): "type 'task.text=[Review text]'",
    ("task=own", "task.label=Did", "they", "like", "it?", "seed=1"): """type 'task.label="Did they like it?"'""",
    ("task.sep=\\;",): """type 'task.sep="\\;"'""",
    ("task=SST-2",): "did you mean sst2?",
    ("method=ElaLoRA",): "did you mean elalora?",
    ("model=microsoft/deberta-v3-base",): "type model=local model.path=microsoft/deberta-v3-base model.revision=COMMIT",
    ("model=/tmp/foo",): "type model=local model.path=/tmp/foo",
    ("task=train.csv",): "type task=own task.files.train=train.csv task.files.test=PATH",
    ("+trainer.epochs=3",): "type trainer.epochs=3",
    ("+task=rte",): "type task=rte",
    ("+seed=3",): "type seed=3",
    ("+trainer.foo=3",): "unknown setting 'trainer.foo'; available of trainer: batch_size",
    ("+lr=3",): "type trainer.lr=3",
    ("data.cache=läufe",): """type 'data.cache="läufe"'""",
    ("data.cache=a=b",): """type 'data.cache="a=b"'""",
    ("data.cache=a&b",): """type 'data.cache="a&b"'""",
    ("data.cache=run (1)",): """type 'data.cache="run (1)"'""",
    ("data.cache=a#b",): """type 'data.cache="a#b"'""",
    ("data.cache=a{b",): """close its bracket, or for a text type 'data.cache="a{b"'""",
    ("data.cache='a",): """type 'data.cache="a"'""",
    ("data.cache=a,b",): """for a text type 'data.cache="a,b"'""",
    ("data.cache=[a]",): """data.cache is one text, not a list; type 'data.cache="[a]"'""",
    ("data.cache=~/x",): "type data.cache=$HOME/x",
    ("task.text=review",): """task.text is a list; type 'task.text=["review"]'""",
    ("task.labels=no,yes",): "for a list type 'task.labels=[no,yes]'",
    ("task.labels=[true,false]",): """is read as true or false; for a text type 'task.labels=["true","false"]'""",
    ("model.revision=1234e567",): """is read as a number; for a text type 'model.revision="1234e567"'""",
    ("data=folder",): "data is a group of settings; type one of data.cache, data.eval_items, data.root",
    ("launcher=slurm",): "type hydra/launcher=slurm",
    ("hydra.launcher=slurm",): "type hydra/launcher=NAME",
    ("launcher.partition=gpu",): "does nothing; type hydra/launcher=slurm",
    ("seed=range(3)",): "'seed=range(3)' has several values: for a sweep over them type -m",
    ("seed=[0,1]",): "for a sweep type -m 'seed=0,1'",
    ("-m", "seed=0-9"): "for a sweep type -m 'seed=range(0,10)'",
    ("-m", "seed=0..9"): "for a sweep type -m 'seed=range(0,10)'",
    ("-m", "seed=range(3"): "close its bracket",
    ("-m", "method=elalora", "method=lora"): "for both type method=elalora,lora",
    ("-m", "method=[elalora,lora]"): "for a sweep type -m method=elalora,lora",
    ("budget=330000",): "type budget=params budget.params=330000",
    ("-m", "budget=4,8"): "type budget=r4,r8",
    ("-m", "budget=r2-r8"): "type budget=r4 budget.rank=N; allowed: budget=r1",
    ("task.text=[review (en),x]",): """type 'task.text=["review (en)","x"]'""",
    ("task.sep=;",): """type 'task.sep=";"'""",
    ("task.labels=[null,none]",): "task.labels",
    ("trainer.lr=10^-3",): "type a number, such as trainer.lr=1",
    ("trainer.max_steps=1e3",): "type trainer.max_steps=1000",
    ("trainer.max_steps=None",): "for none type trainer.max_steps=null",
    ("store.keep_checkpoint=maybe",): "store.keep_checkpoint=maybe is not true or false",
    ("seed",): "type seed=VALUE",
    ("status",): "type python -m experiments status",
    ("task=vader",): "did you mean vader_",
    ("+study=pilot", "+study=glue_main"): "a command runs one study",
    ("~task",): "a group cannot be removed",
    ("trainer.epochs=3",): "does nothing; type trainer.max_steps=null",
}  # fmt: skip
DATA = {
    "empty.csv": b"", "no_label.csv": b"text\nx\n", "no_rows.csv": b"text,label\n",
    "latin.csv": b"text,label\n\xff\xfe,0\n",
    "odd.csv": b'text,label\n"open,0\n', "third.csv": b"text,label\na,0\nb,1\nc,2\n",
    "half.jsonl": b'{"text": "a", "la',
    "list.jsonl": b"[1, 2]\n",
    "fake.parquet": b"PAR1 nothing PAR1", "thing.xyz": b"text,label\na,0\n",
}  # fmt: skip
SETTING = {"config.json": b"{", "model.safetensors": b"\x00" * 40, "tokenizer.json": b"[]"}


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Calls the command, and holds what must be true of every refusal."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["run.py", f"store.root={tmp_path}/store", *words])
        code = run.main()
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 2, (words, code, err)
        assert len(lines) == 1 and lines[0].startswith("elalora: ") and "Traceback" not in out + err, err
        assert len(lines[0]) > len("elalora: ") + 15, err
        assert not (tmp_path / "store").exists()
        return lines[0]

    return call


@pytest.mark.parametrize("words", OVERRIDES + CONFIGS + BUDGETS, ids=" ".join)
def test_a_wrong_word_is_one_line(words, refused, tiny_model_dir):
    refused(*QUICK, *MOVES, f"model.path={tiny_model_dir}", *words)


@pytest.mark.parametrize("words", ADVICE, ids=" ".join)
def test_the_answer_to_a_wrong_word_is_the_finished_word(words, refused):
    assert ADVICE[words] in refused(*words)


def test_overrides_may_stand_before_and_behind_a_flag(monkeypatch, capsys, tmp_path):
    words = ["method=elalora,lora", "-m", "budget=r2,r4", "--plan", f"store.root={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["run.py", *words])
    assert run.main() == 0 and capsys.readouterr().out.startswith("4 runs:")


def test_what_is_offered_for_a_text_is_read_as_this_text():
    for text in ("a=b", "a&b", "run (1)", "läufe", "a#b", "it's", 'a"b', "1e5"):
        (word,) = shlex.split(for_text(f"data.cache={text}"))
        assert compose_run([word]).data.cache == text


def test_names_in_yaml_stay_what_is_written(tmp_path):
    (tmp_path / "task").mkdir()
    shipped = (CONF / "task" / "own.yaml").read_text().replace("labels: null", "labels: [no, yes]")
    (tmp_path / "task" / "answers.yaml").write_text(shipped)
    (tmp_path / "task" / "wrong.yaml").write_text(shipped.replace("[no, yes]", "[no, true]"))
    place = f"hydra.searchpath=[file://{tmp_path}]"
    assert list(compose_run([place, "task=answers"]).task.labels) == ["no", "yes"]
    with pytest.raises(MISTAKES) as caught:
        compose_run([place, "task=wrong"])
    assert "task.labels[1]=True is read as true or false; for a text put it in quotes" in explain(caught.value)


@pytest.mark.parametrize("name", DATA)
def test_a_wrong_data_file_is_one_line_with_its_name(name, refused, tiny_model_dir, tmp_path):
    (tmp_path / name).write_bytes(DATA[name])
    (tmp_path / "good.csv").write_text("text,label\n" + "a,0\nb,1\n" * 5)
    words = ["task=own", f"data.root={tmp_path}", f"task.files.train={name}", "task.files.test=good.csv"]
    assert name in refused(*QUICK, *MOVES, f"model.path={tiny_model_dir}", *words)


@pytest.mark.parametrize("name", [*SETTING, "no config.json", "no model.safetensors", "no tokenizer.json", "pickle"])
def test_a_wrong_model_folder_is_one_line(name, refused, tiny_model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    if name in SETTING:
        (folder / name).write_bytes(SETTING[name])
    elif name == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    else:
        (folder / name.removeprefix("no ")).unlink()
    (tmp_path / "good.csv").write_text("text,label\n" + "a,0\nb,1\n" * 5)
    words = ["task=own", f"data.root={tmp_path}", "task.files.train=good.csv", "task.files.test=good.csv"]
    refused(*QUICK, *MOVES, f"model.path={folder}", *words)


RESULTS = {
    "an empty file": "", "half a file": '{"schema": 1, "id', "a list": "[]", "a number": "7", "no schema": "{}",
    "a newer schema": json.dumps({"schema": 99}), "an older schema": json.dumps({"schema": 0}),
}  # fmt: skip


@pytest.mark.parametrize("content", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("setting", ["init_from", "method.ranks_from"])
def test_a_wrong_result_of_another_run_is_one_line_and_stays(setting, content, refused, tiny_model_dir, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "result.json").write_text(content)
    method = ["method=svd_lora"] if setting == "method.ranks_from" else MOVES
    assert str(source) in refused(*QUICK, f"model.path={tiny_model_dir}", *method, f"{setting}={source}")
    assert (source / "result.json").read_text() == content
