"""The schema of a task, its data and its evaluation protocol, and the check of a task's settings against each other.

Hydra checks a command against these dataclasses. Every start of `run.py` imports this, so it imports nothing heavy.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from elalora.errors import UserError
from elalora.resolve import added
from experiments.config.increments import check_increments
from experiments.config.templates import columns_of

ROUGES = (
    "rouge1", "rouge2", "rougeL", "rougeLsum", "rouge1_unicode", "rouge2_unicode", "rougeL_unicode", "rougeLsum_unicode"
)  # fmt: skip
FOLLOWED = ("prompt_loose", "instruction_strict", "instruction_loose")  # of IFEval, beside its accuracy
LOSSES = ("token_loss", "perplexity")  # smaller is better, so they never select a checkpoint
METRICS = {
    "classification": ("accuracy", "f1", "mcc"),
    "regression": ("pearson", "spearman"),
    "summarization": ROUGES,
    "image": ("accuracy", "f1", "mcc"),
    "causal": ("accuracy", "f1", "mcc", "token_accuracy", *LOSSES, "parse_failures", *FOLLOWED, *ROUGES),
}
# of causal tasks, by the form of the answer
ANSWER_METRICS = {
    "options": ("accuracy", "f1", "mcc", *LOSSES),
    "generate": ("accuracy", "parse_failures", *FOLLOWED, *ROUGES),
    "tokens": ("token_accuracy", *LOSSES),
}
PARSERS = (
    "exact_v1", "first_option_v1", "first_word_option_v1", "last_number_v1", "gsm8k_v1", "metamath_v1", "hash_v1",
    "math_v1", "code_block_v1", "code_completion_v1", "ifeval_v1",
)  # fmt: skip
CODE_PARSERS = ("code_block_v1", "code_completion_v1")  # read programs, which are right if their tests pass
RULES_PARSER = "ifeval_v1"  # reads texts, which are right if they follow their prompts' rules
NOT_RUN = "generated code not run"  # a flag of results
OPTIONS = "options"  # column of a loaded split with the options of each row
PART = 1_000_000  # items of one of `task.parts` are numbered from this times its place, counted from 1
KNOWN_METRICS = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))

# Hydra refuses any other value and lists these; each member equals its plain string, also in stored files
Kind = StrEnum("Kind", "classification regression summarization image causal")
Suite = StrEnum("Suite", "glue summarization vtab vader own")
Group = StrEnum("Group", "natural specialized structured")
Normalise = StrEnum("Normalise", "checkpoint imagenet")
Protocol = StrEnum("Protocol", "clean paper_last paper_best tune")
Answer = StrEnum("Answer", "options generate tokens")
LossOn = StrEnum("LossOn", "completion all")
Truncation = StrEnum("Truncation", "left drop")
OptionScore = StrEnum("OptionScore", "sum token character")
ClassOrder = StrEnum("ClassOrder", "seed label")
IncrementLoss = StrEnum("IncrementLoss", "current seen")


# input columns: in words, and their largest number
COLUMNS = {
    **dict.fromkeys(("classification", "regression"), ("one or two input columns", 2)),
    **dict.fromkeys(("summarization", "image"), ("one input column", 1)), "causal": ("at least one input column", 100),
}  # fmt: skip


@dataclass
class TeacherConfig:
    """A teacher whose answers replace the task's labels (`experiments.models.teacher`).

    Attributes:
        pattern: rule that says where its update has its ranks (`elalora.layouts`); so `method.pattern` of the same rule
            is the layout that the task was made for. Null: no teacher.
        rank: mean rank of its update over all matrices of `model.targets`, as `budget=rN` counts.
        strength: norm of the update of a matrix, relative to that of the frozen weight.
        seed: of the update and the output layer.
    """

    pattern: str | None = None
    rank: int = 1
    strength: float = 1.0
    seed: int = 0


@dataclass
class TaskConfig:
    """One task: its inputs, label and metrics. conf/task/ holds one file per task.

    Attributes:
        name: the task's name on the command line and in every table.
        source: the loader: "glue", "summarization", "vtab", "vader", "digits", "sums", "math", "commonsense",
            "code", "instructions", "ifeval" or "files".
        subset: the part of the source, such as "movies" or "cola"; for folders its name below data.root.
        suite: "glue", "summarization", "vtab", "vader" or "own": the benchmark; the protocols depend on it.
        group: "natural", "specialized" or "structured" in VTAB-1k, for means by group.
        kind: "classification" (integer labels), "regression" (one real number), "summarization" (a text) or "image"
            (integer labels of images) or "causal" (a prompt that a causal language model continues).
        num_labels: outputs of the head; 1 for regression, summarization and causal.
        text: names of the input columns: one or two texts, one document, or one image; for causal any number of texts.
        label: name of the label's column in the user's own files.
        labels: the classes' names in the order of their ids; null takes the names in the data, sorted (own files).
        files: split -> path, for source "files": train, and validation or test or both. Relative paths start in
            data.root, or in the current folder if data.root is null. A pattern or a folder names several tables.
        sep: between the columns of CSV and TSV files: one character, or "tab"; null takes that of the suffix.
        drop_unlabelled: whether rows of own files without a label are dropped instead of refused.
        metrics: names of experiments.training.metrics, the primary one first.
        max_length, target_length: maximum tokens of an input, and of a summary that is trained on; longer ones are cut,
            and the cuts are counted.
        generate_length, beams: maximum number of generated tokens, and width of the beam search.
        min_generate_length, length_penalty: minimum number of generated tokens, and exponent of the length by which a
            beam's score is divided; null takes 0 and 1, and refuses a checkpoint that was made for other values.
        no_repeat_ngram: no sequence of that many tokens is generated twice; 0 allows all. BART's checkpoints have 3.
        early_stopping: whether the search ends with as many finished summaries as beams, as BART's checkpoints do.
        normalise: of images: "checkpoint" takes mean and deviation from the model's image processor, "imagenet" those
            of ImageNet, as ElaLoRA's code does.
        prompt: template of a causal task's prompt, with the input columns in braces.
        prompt_without: the template for rows whose last input column is blank; null takes `prompt`.
        completion: template of what follows the prompt; {label} is the row's label.
        chat: whether prompt and completion become the turns of a user and an assistant by the tokenizer's chat
            template; system: the text of a system turn before them.
        loss: "completion" trains on the tokens of the completion and its end, "all" on those of the prompt too.
        truncation: what happens to items above max_length: "left" cuts the prompt's left, "drop" leaves out training
            rows. A completion is never cut.
        answer: "options" takes the likeliest option, "generate" generates greedily and reads the answer with `parser`,
            "tokens" scores the tokens of the completion.
        options: the options' texts, in the order of the label ids; none if labels are texts.
        options_column: column with the options of each row, for rows whose options differ; a label is then the text of
            one of them or its number, from 0. In commonsense the column that names them.
        option_score: by which an option is the likeliest: "sum" of its tokens' log-probabilities, or that sum divided
            by the number of tokens or characters.
        parser: one of `PARSERS`, which says how an answer is read from generated text and compared.
        execute: whether generated code is run against its tests (`experiments.training.execution`); never by default.
        stop: texts that end the generation and are cut off.
        parts: names of the test sets that the test split joins; the score is the unweighted mean of theirs.
        citation: what to cite in docs and tables.
        verify: whether counts, labels and content are compared with the official ones; false for subsets and stand-ins,
            and every result then says so.
        fingerprint: expected sha256 of the content, part of a run's identity and checked at load; null accepts any
            content with the right counts.
        hub_id, hub_name, hub_revision: data set on the hub, its configuration and the pinned commit.
        test_hub_id, test_hub_revision: data set of the test split, where it is another one.
        quick_items: training items under trainer=quick, or all if there are fewer; null takes all.
        quick_eval_items, quick_steps, quick_batch: the other sizes of trainer=quick, `data.eval_items`,
            `trainer.max_steps` and `trainer.batch_size`. quick_rates: family of methods (`recipe.families`) -> its
            learning rate; others take `recipe.centres`.
        teacher: labels the texts in place of the task's own labels, if it has a pattern.
        domains: subsets whose rows the task joins, each a domain; its increments are then domains instead of classes.
        increments: how the classes (or domains) arrive one after another: a number of equal parts, the sizes of the
            parts ([2,2,1]), or the parts themselves ([[5,6],[7,8],[9]]); null trains on all at once.
        class_order: the order in which equal parts and sizes take the classes: "seed" draws it from the run's seed,
            "label" goes by their numbers.
        increment_loss: the classes over which the loss of an increment is a softmax: "current" or all that were "seen".
            Null takes "current", and "seen" where an increment has one class, over which a loss says nothing.
    """

    name: str = MISSING
    source: str = MISSING
    subset: str = MISSING
    suite: Suite = Suite.own
    group: Group | None = None
    kind: Kind = Kind.classification
    num_labels: int = 2
    text: list[str] = field(default_factory=lambda: ["text"])
    label: str = "label"
    labels: list[str] | None = None
    files: dict[str, str | None] = field(default_factory=dict)
    sep: str | None = added(None)
    drop_unlabelled: bool = added(False)
    metrics: list[str] = field(default_factory=lambda: ["accuracy"])
    max_length: int = 128
    target_length: int = 64
    generate_length: int = 62
    beams: int = 4
    min_generate_length: int | None = added(None)
    length_penalty: float | None = added(None)
    no_repeat_ngram: int = added(3)
    early_stopping: bool = added(True)
    normalise: Normalise = Normalise.checkpoint
    prompt: str = "{text}"
    prompt_without: str | None = None
    completion: str = " {label}"
    chat: bool = False
    system: str | None = None
    loss: LossOn = LossOn.completion
    truncation: Truncation = Truncation.left
    answer: Answer = Answer.options
    options: list[str] = field(default_factory=list)
    options_column: str | None = added(None)
    option_score: OptionScore = OptionScore.sum
    parser: str = "exact_v1"
    execute: bool = added(False)
    stop: list[str] = field(default_factory=list)
    parts: list[str] = added(list)
    citation: str = ""
    verify: bool = True
    fingerprint: str | None = None
    hub_id: str | None = None
    hub_name: str | None = None
    hub_revision: str | None = None
    test_hub_id: str | None = added(None)
    test_hub_revision: str | None = added(None)
    quick_items: int | None = None
    quick_eval_items: int | None = None
    quick_steps: int = 100
    quick_batch: int = 32
    quick_rates: dict[str, float] = field(default_factory=dict)
    teacher: TeacherConfig = added(TeacherConfig)
    domains: list[str] | None = added(None)
    increments: Any = added(None)
    class_order: ClassOrder = added(ClassOrder.seed)
    increment_loss: IncrementLoss | None = added(None)


def check_task(task: TaskConfig) -> None:
    """Refuses a task with settings that contradict each other, before anything is loaded.

    Raises:
        UserError: names the setting, what is allowed, and what to type.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", task.name):
        raise UserError(f"task.name={task.name} becomes a folder name; allowed: at most 100 letters, digits, _ and -")
    for name in ("max_length", "target_length", "generate_length", "beams"):
        if getattr(task, name) < 1:
            raise UserError(f"task.{name}={getattr(task, name)} must be at least 1")
    if not 0 <= (task.min_generate_length or 0) <= task.generate_length:
        raise UserError(
            f"task.min_generate_length={task.min_generate_length} must lie between 0 and task.generate_length="
            f"{task.generate_length}"
        )
    if task.no_repeat_ngram < 0:
        raise UserError(f"task.no_repeat_ngram={task.no_repeat_ngram} must be at least 0; 0 allows repetitions")
    if task.length_penalty is not None and not math.isfinite(task.length_penalty):
        raise UserError(f"task.length_penalty={task.length_penalty} must be finite; 1 divides by the length")
    classes = task.kind in ("classification", "image")
    if classes and task.num_labels < 2 or not classes and task.num_labels != 1:
        needed = "at least 2" if classes else "1"
        raise UserError(f"task.num_labels={task.num_labels}, but kind {task.kind} needs {needed}")
    columns, most = COLUMNS[task.kind]
    if not 1 <= len(task.text) <= most:
        raise UserError(f"task.text={list(task.text)}: kind {task.kind} takes {columns}")
    if task.kind == "causal":
        _check_causal(task)
    if task.labels is not None and (len(task.labels) != task.num_labels or len(set(task.labels)) != len(task.labels)):
        raise UserError(f"task.labels has {len(set(task.labels))} different names; task.num_labels={task.num_labels}")
    _check_metrics(task)
    if unknown := [name for name in task.files if name not in ("train", "validation", "test")]:
        raise UserError(f"task.files.{unknown[0]} is not a split; allowed: train, validation, test")
    if task.sep is not None and task.sep != "tab" and (len(task.sep) != 1 or task.sep in '"\r\n'):
        raise UserError(f"task.sep={task.sep} is not one character; allowed: tab, or a character such as ; or |")
    if task.drop_unlabelled and task.source != "files":
        raise UserError(f"task.drop_unlabelled=true is for own files (task=own), not for task={task.name}")
    if task.teacher != TeacherConfig():
        _check_teacher(task, task.teacher)
    if task.increments is not None:
        check_increments(task)


def _check_teacher(task: TaskConfig, teacher: TeacherConfig) -> None:
    from elalora.layouts import read_rule  # imports torch

    if teacher.pattern is None:
        raise UserError("task.teacher needs task.teacher.pattern, such as 'layer1:1 rest:0', or none of its settings")
    read_rule(teacher.pattern, "task.teacher.pattern")
    if task.kind != "classification":
        raise UserError(f"task.teacher labels texts with classes; task={task.name} has kind {task.kind}")
    if teacher.rank < 1:
        raise UserError(f"task.teacher.rank={teacher.rank} must be at least 1")
    if not 0 < teacher.strength < math.inf:
        raise UserError(f"task.teacher.strength={teacher.strength} must be above 0 and finite")
    if not 0 <= teacher.seed < 2**63:
        raise UserError(f"task.teacher.seed={teacher.seed} must be at least 0 and below 2^63")


def _check_causal(task: TaskConfig) -> None:
    """Refuses templates, options and metrics of a causal task that do not fit each other."""
    known = set(task.text)
    templates = {"prompt": (task.prompt, known), "completion": (task.completion, {*known, "label"})}
    if task.prompt_without is not None:
        templates["prompt_without"] = (task.prompt_without, known)
    for name, (template, columns) in templates.items():
        if unknown := sorted(columns_of(template, f"task.{name}") - columns):
            raise UserError(f"task.{name} names {{{unknown[0]}}}; allowed: {', '.join(sorted(columns))}")
    if "label" not in columns_of(task.completion, "task.completion"):
        raise UserError(f"task.completion={task.completion!r} needs {{label}}, the answer of a row")
    if task.system is not None and not task.chat:
        raise UserError("task.system is a turn of a chat; type task.chat=true, or put its text into task.prompt")
    if not task.chat and (not task.prompt or task.prompt[-1].isspace()):
        raise UserError(
            f"task.prompt={task.prompt!r} must end in a character that is not white space, because tokens reach across "
            "blanks; begin task.completion with the white space instead"
        )
    if task.options_column is not None:
        _check_options_column(task)
    elif task.answer == "options" and (len(set(task.options)) != len(task.options) or len(task.options) < 2):
        raise UserError(f"task.options={list(task.options)}: task.answer=options needs at least two different options")
    if task.options and not all(option.strip() for option in task.options):
        raise UserError(f"task.options={list(task.options)}: an option is blank")
    if task.parser not in PARSERS:
        raise UserError(f"task.parser={task.parser} is unknown; allowed: {', '.join(PARSERS)}")
    _check_code(task)
    _check_rules(task)
    if not all(task.stop):
        raise UserError(f"task.stop={list(task.stop)}: a stop text is empty; task.stop=[] stops at the end token only")
    fitting = ANSWER_METRICS[task.answer]
    if wrong := [name for name in task.metrics if name in METRICS["causal"] and name not in fitting]:
        raise UserError(f"task.metrics: task.answer={task.answer} has no {wrong[0]}; allowed: {', '.join(fitting)}")
    if task.metrics and task.metrics[0] in (*LOSSES, "parse_failures"):
        raise UserError(f"task.metrics begins with {task.metrics[0]}, but the first one must be larger where better")


def _check_options_column(task: TaskConfig) -> None:
    """Refuses options of each row where nothing reads them, or beside options or metrics of all rows."""
    given = f"task.options_column={task.options_column}"
    if task.answer != "options":
        raise UserError(f"{given} is read with task.answer=options only, not with task.answer={task.answer}")
    if task.source not in ("files", "commonsense"):
        raise UserError(f"{given} is for own files (task=own_prompts) and commonsense, not for task={task.name}")
    if task.source == "commonsense" and task.options_column not in task.text:
        raise UserError(f"{given}: the options of task={task.name} stand in its column {task.text[0]}; type that")
    if task.source == "files" and task.options:
        raise UserError(f"{given} gives every row its own options; remove task.options={list(task.options)}")
    if task.source == "files" and OPTIONS in task.text:
        raise UserError(f"{given}: an input column cannot be named {OPTIONS} beside it; rename it in the files")
    fitting = ("accuracy", *LOSSES)
    if wrong := [name for name in task.metrics if name not in fitting]:
        raise UserError(
            f"{given}: classes differ from row to row, so task.metrics takes {', '.join(fitting)}, not {wrong[0]}"
        )


def _check_code(task: TaskConfig) -> None:
    """Refuses to read programs without tests, and to run them unasked."""
    code = task.answer == "generate" and task.parser in CODE_PARSERS
    if code and task.source != "code":
        raise UserError(f"task.parser={task.parser} reads programs, whose tests task=humaneval and task=mbpp have")
    if task.execute and not code:
        raise UserError(
            f"task.execute=true runs generated code, of which task={task.name} with task.answer={task.answer} and "
            f"task.parser={task.parser} has none; type task.execute=false"
        )
    if code and task.execute != ("accuracy" in task.metrics):
        raise UserError(
            "task.metrics has accuracy if and only if generated code is run; type task.execute=true "
            "'task.metrics=[accuracy,parse_failures]', or task.execute=false 'task.metrics=[rougeL,parse_failures]' to "
            "run nothing"
        )


def _check_rules(task: TaskConfig) -> None:
    """Refuses to check rules that prompts do not have, or metrics that do not belong to rules."""
    by_rules = task.answer == "generate" and task.parser == RULES_PARSER
    if by_rules != (task.source == "ifeval"):
        raise UserError(
            f"task={task.name} with task.answer={task.answer} and task.parser={task.parser}: the rules of task=ifeval "
            f"are read with task.answer=generate and task.parser={RULES_PARSER}, and no other task has any"
        )
    wrong = [name for name in task.metrics if name in (ROUGES if by_rules else FOLLOWED)]
    if wrong and by_rules:
        raise UserError(f"task.metrics: task=ifeval has no {wrong[0]}; allowed: accuracy, {', '.join(FOLLOWED)}")
    if wrong:
        raise UserError(f"task.metrics: {wrong[0]} is for task=ifeval, whose prompts have rules")


def rows_as(task: TaskConfig) -> TaskConfig:
    """The task in the form in which its rows are loaded.

    A causal task's rows are those of a classification, with the options as classes, or texts with references, so every
    loader serves it. Other tasks are returned as they are.
    """
    if task.kind != "causal":
        return task
    if task.options or task.options_column is not None:
        labels = list(task.options)
        return replace(
            task, kind=Kind.classification, num_labels=max(2, len(labels)), labels=labels or None, metrics=["accuracy"]
        )
    return replace(task, kind=Kind.summarization, metrics=[name for name in task.metrics if name in ROUGES])


def _check_metrics(task: TaskConfig) -> None:
    if not task.metrics:
        raise UserError(f"task.metrics is empty; kind {task.kind} has {', '.join(METRICS[task.kind])}")
    for name in task.metrics:
        if name not in KNOWN_METRICS:
            raise UserError(f"task.metrics: {name} is unknown; allowed: {', '.join(KNOWN_METRICS)}")
        if name not in METRICS[task.kind]:
            raise UserError(f"task.metrics: kind {task.kind} has no {name}; allowed: {', '.join(METRICS[task.kind])}")
        if name == "f1" and rows_as(task).num_labels != 2:
            raise UserError(f"task.metrics: f1 needs two classes; task.num_labels={rows_as(task).num_labels}")


@dataclass
class DataConfig:
    """Where data are on this machine, and how much of the training split is used."""

    root: str | None = None  # local data folder, read first; docs/benchmarks.md describes its layout
    cache: str | None = None  # folder for fetched and tokenised data; null takes $ELALORA_CACHE, else ~/.cache/elalora
    train_items: int | None = None  # size of a training subset, drawn by the run's seed; null uses the whole split
    # items at most of every evaluated split, the same for all runs; null uses the whole split
    eval_items: int | None = added(None)


@dataclass
class ProtocolConfig:
    """Which data select a checkpoint and which are reported (see experiments.data.protocols)."""

    name: Protocol = Protocol.clean  # "clean", "paper_last", "paper_best", or "tune" for tuning runs
    split_seed: int = 0  # draws the held-out part of train under "clean"; the same for all run seeds
