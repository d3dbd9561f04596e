#!/usr/bin/env python3
"""Set everything up beside this file, then run it. Needs Python 3.11 or newer and pip, nothing else.

    python3 run.py demo [ARGUMENT …]   the demo: real conversations through all tiers (`thermocline demo`)
    python3 run.py test [ARGUMENT …]   the tests (arguments go to pytest: -k settle)
    python3 run.py long [ARGUMENT …]   the long ring: kill -9 and pauses under load, for an hour

The first run makes .venv here and installs what requirements.lock pins (for tests: requirements-dev.lock).
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
COMMANDS = {
    "demo": ("requirements.lock", ["-m", "thermocline", "demo"]),
    "test": ("requirements-dev.lock", ["-m", "pytest", "-n", "6", "--dist", "worksteal", "--durations", "40"]),
    "long": ("requirements-dev.lock", ["-m", "pytest", "-m", "long"]),
}
UNREACHABLE = ("Failed to establish a new connection", "name resolution", "timed out", "Could not fetch URL", "ProxyError")


def main(arguments):
    if sys.version_info < (3, 11):
        fail(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: run it with another, e.g. python3.12 run.py")
    if os.name != "posix":
        fail("Linux or macOS is needed (on Windows: WSL), because Redis runs on nothing else")
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__.strip())
        sys.exit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
    lock, command = COMMANDS[arguments[0]]
    set_up(lock)
    if arguments[0] != "demo":
        os.chdir(ROOT)
    os.execv(PYTHON, [str(PYTHON), *command, *arguments[1:]])


def set_up(lock):
    """Make .venv hold what `lock` pins, and this project. Does nothing when it does already."""
    base, stamp = VENV / ".base", VENV / f".{lock}.ready"
    made_with = f"{sys.version} {sys.base_prefix}"
    if not PYTHON.exists() or not base.is_file() or base.read_text() != made_with:
        say(f"making .venv (Python {sys.version.split()[0]})")
        run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV)])
        base.write_text(made_with)
    made_by = b"".join(path.read_bytes() for path in (ROOT / lock, ROOT / "pyproject.toml", Path(__file__)))
    wanted = hashlib.sha256(made_by + bytes(ROOT)).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    count = (ROOT / lock).read_text().count("==")
    say(f"installing {count} packages pinned in {lock}; a minute or two the first time")
    pip("--no-deps", "--require-hashes", "-r", str(ROOT / lock), count=count)
    pip("--no-deps", "--no-build-isolation", "-e", str(ROOT))
    if (ROOT / "src" / "thermocline" / "ingest").is_dir():  # or a script beside this folder would take it for the package, empty
        for packages in (VENV / "lib").glob("python*/site-packages"):
            (packages / "thermocline-source.pth").write_text(f"{ROOT / 'src'}\n")
    stamp.write_text(wanted)
    say("ready")


def pip(*arguments, count=0):
    """Install into .venv with the pip of the Python that runs this, else with the one that comes with Python."""
    installer = [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], check=False, capture_output=True).returncode:
        if subprocess.run([str(PYTHON), "-m", "ensurepip"], check=False, capture_output=True).returncode:
            fail("pip is missing: install it (Debian, Ubuntu: apt install python3-pip), then run the same command again")
        installer = [str(PYTHON), "-m", "pip"]
    run([*installer, "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", *arguments], count)


def run(command, count=0):
    """Run one step, showing what it collects when somebody watches; if it fails, one line says why and that is the end."""
    lines, collected, watched = [], 0, sys.stdout.isatty()
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            lines.append(line.strip())
            if count and watched and line.startswith(("Collecting", "Installing")):
                collected += line.startswith("Collecting")
                print(f"\r  {collected}/{count} {line.strip()[:56]:<56}", end="", flush=True)
    if count and watched:
        print(f"\r{'':<70}\r", end="", flush=True)
    if process.returncode:
        if any(sign in line for line in lines for sign in UNREACHABLE):
            fail("the package index cannot be reached: check the network (proxy, PIP_INDEX_URL), then run the same command again")
        fail(next((line for line in lines if "error" in line.lower()), " ".join(lines[-1:]) or f"{command[2]} failed"))


def say(text):
    print(f"run.py: {text}", flush=True)


def fail(text):
    sys.exit(f"run.py: {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
