"""The container image: built as users build it, then run as a container engine would, but without one.

There is no engine where this runs, and no registry of images. The base is a minimal Debian with the Python
version of the real base. The service runs as process 1 of its namespace, as user 10001 without
capabilities, on a root that nobody can write to.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from monitor import __version__
from tests.integration.servers import call, free_port, wait_until

REPOSITORY = Path(__file__).parents[2]
BASE, IMAGE = "localhost/base", "localhost/fairness-monitor"
UID = 10001
MAX_BYTES = 320 * 2**20
CONFIG_PATH = "etc/fairness-monitor/monitor.yaml"
CONFIG = """\
sources:
  - {name: posted, http: {}}
server: {ingest_token: a-token-for-this-test}
models:
  triage: {task: binary, groups: [ward]}
"""
EVENT = b'{"id": "1", "time": "2026-03-01T00:00:00Z", "attributes": {"ward": "7"}, "decision": true}\n'


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "building an image here needs root: debootstrap, mounts, chroot"
    tools = ("buildah", "debootstrap", "unshare")
    absent = [tool for tool in tools if shutil.which(tool, path=_path()) is None]
    return f"building an image needs {', '.join(absent)}: tests/integration/install" if absent else None


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _call(command: Sequence[str | Path], seconds: float, **environment: str) -> str:
    """Run a command to its end and return its output; what it said is in the error when it fails."""
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "PATH": _path(), **environment},
        check=False,
    )
    if result.returncode:
        said = f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        raise AssertionError(f"{' '.join(map(str, command))} ended with {result.returncode}:\n{said}")
    return result.stdout


# --- building -----------------------------------------------------------------------------------------------
class Buildah:
    """Buildah with a store of its own in a folder, which goes away with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._command = ["buildah", "--root", folder / "root", "--runroot", folder / "run"]
        self._command += ["--storage-driver", "vfs"]
        (folder / "tmp").mkdir(parents=True)

    def __call__(self, *arguments: str | Path, seconds: float = 120) -> str:
        temporary = str(self.folder / "tmp")
        return _call([*self._command, *arguments], seconds, TMPDIR=temporary).strip()

    def remove(self) -> None:
        self("rm", "--all")
        self("rmi", "--all", "--force")
        shutil.rmtree(self.folder)


def make_base(buildah: Buildah) -> None:
    """A minimal Debian with Python, in place of python:3.11-slim-bookworm."""
    root = buildah.folder / "debian"
    include = "--include=python3,python3-venv,ca-certificates"
    _call(["debootstrap", "--variant=minbase", include, "bookworm", root, *_mirror()], 400)
    for folder in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / folder)
    container = buildah("from", "scratch")
    buildah("add", container, root, "/")
    buildah("commit", "--rm", container, BASE)
    shutil.rmtree(root)


def _mirror() -> list[str]:
    """Where this machine's own packages come from, if it is the same Debian."""
    form = "$(REPO_URI) $(RELEASE)"
    targets = _call(["apt-get", "indextargets", "--format", form, "Identifier: Packages"], 30)
    found = [line.split() for line in targets.splitlines()]
    return next(([uri] for uri, *release in found if release == ["bookworm"]), [])


def pip_secrets(folder: Path) -> list[str]:
    """How pip on this machine reaches its package index, for pip in the build; not kept in the image."""
    wanted = (
        "index-url",
        "extra-index-url",
        "trusted-host",
        "proxy",
        "timeout",
        "default-timeout",
        "retries",
    )
    settings = {}
    certificates = ssl.get_default_verify_paths().cafile
    for line in _call([sys.executable, "-m", "pip", "config", "list"], 60).splitlines():
        name, _, value = line.partition("=")
        key = name.removeprefix(":env:").rpartition(".")[2]
        if key in wanted:
            settings[key] = ast.literal_eval(value)
        elif key == "cert":
            certificates = ast.literal_eval(value)
    arguments = []
    if certificates:
        settings["cert"] = "/run/build-ca.crt"
        arguments += ["--secret", f"id=ca,src={certificates}"]
    lines = [f"{key} = {value}".replace("\n", "\n  ") for key, value in settings.items()]
    file = folder / "pip.conf"
    file.write_text("\n".join(["[global]", *lines, ""]))
    return [*arguments, "--secret", f"id=pip,src={file}"]


@contextmanager
def built_image(folder: Path) -> Iterator[Buildah]:
    buildah = Buildah(folder)
    try:
        make_base(buildah)
        arguments = ["--pull-never", "--isolation", "chroot", "--format", "docker"]
        arguments += ["--build-arg", f"BASE={BASE}", "--build-arg", f"VERSION={__version__}"]
        arguments += [*pip_secrets(folder), "--tag", IMAGE, "--file", str(REPOSITORY / "deploy/Dockerfile")]
        buildah("bud", *arguments, REPOSITORY, seconds=500)
        yield buildah
    finally:
        buildah.remove()


# --- running ------------------------------------------------------------------------------------------------
ENTER = """
set -e
mount --bind "$1" "$1"
for folder in dev proc; do mount --rbind "/$folder" "$1/$folder"; done
mount -t proc proc "$1/proc"
mount -o remount,bind,ro "$1"
root=$1
shift
exec chroot "$root" setpriv --reuid UID --regid UID --clear-groups --bounding-set=-all --inh-caps=-all \
  --no-new-privs env --ignore-environment "$@"
""".replace("UID", str(UID))
"""What a container engine does: a mount namespace, a read-only root, a user, no capabilities."""


@dataclass(frozen=True)
class Container:
    """An image's files and its configuration."""

    root: Path
    settings: dict[str, Any]

    def command(self, *arguments: str, **environment: str) -> list[str]:
        given: list[str] = self.settings["Env"]
        variables = [*given, *(f"{name}={value}" for name, value in environment.items())]
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "sh"]
        return [*enter, str(self.root), *variables, *arguments]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container to its end."""
        return subprocess.run(
            self.command(*arguments, **environment), capture_output=True, text=True, timeout=60, check=False
        )


@contextmanager
def started(container: Container, output: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """The image's own command. It is killed when it has not ended by the end."""
    own = [*container.settings["Entrypoint"], *container.settings["Cmd"]]
    with (
        output.open("wb") as file,
        subprocess.Popen(container.command(*own, **environment), stdout=file, stderr=file) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()  # and with it, --kill-child, what runs in the namespace


def first_process(process: subprocess.Popen[bytes]) -> int:
    """The service itself: process 1 of the namespace, the child of ``unshare``."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


# --- checks -------------------------------------------------------------------------------------------------
def check_settings(settings: dict[str, Any]) -> None:
    assert settings["User"] == f"{UID}:{UID}"
    assert settings["Entrypoint"] == ["fairness-monitor"]
    assert settings["Cmd"] == ["run", f"/{CONFIG_PATH}"]
    assert settings["StopSignal"] in ("SIGTERM", str(int(signal.SIGTERM)))
    assert list(settings["ExposedPorts"]) == ["9464/tcp"]
    assert list(settings["Volumes"]) == ["/var/lib/fairness-monitor"]
    variables = dict(text.split("=", 1) for text in settings["Env"])
    assert variables["FAIRNESS_MONITOR__SERVER__LISTEN"] == "0.0.0.0:9464"
    assert variables["MALLOC_MMAP_THRESHOLD_"] == "1048576"
    labels: dict[str, str] = settings["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert settings["Healthcheck"]["Test"][0] == "CMD"


def check_files(root: Path) -> None:
    """No traces of the build, no pip, nothing of the repository but the package; code is compiled."""
    for trace in ("etc/pip.conf", "run/build-ca.crt", "build", "root/.cache"):
        assert not (root / trace).exists(), f"/{trace} is in the image"
    ours = root / "opt/fairness-monitor"
    size = sum(file.lstat().st_size for file in ours.rglob("*"))
    print(f"{size / 2**20:.0f} MiB on top of the base")
    assert size < MAX_BYTES, "the image has grown: which library came in, and is it needed there?"
    packages = ours / "lib/python3.11/site-packages"
    assert not list(packages.glob("pip*"))
    assert (packages / "monitor/engine.py").exists()
    assert list((packages / "monitor/__pycache__").glob("engine.*.pyc"))
    assert not (packages / "tests").exists()
    state = (root / "var/lib/fairness-monitor").stat()
    assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (UID, UID, 0o700)


def check_commands(container: Container) -> None:
    denied = container.run("touch", "/var/lib/fairness-monitor/file")
    assert "Read-only file system" in denied.stderr
    status = container.run("grep", "-E", "^(Uid|Cap|NoNewPrivs)", "/proc/self/status").stdout.split("\n")
    assert status[0].split() == ["Uid:", *[str(UID)] * 4]
    assert {line.split()[1] for line in status if line.startswith("Cap")} == {"0" * 16}
    assert "NoNewPrivs:\t1" in status
    version = container.run("fairness-monitor", "--version")
    assert (version.returncode, version.stdout) == (0, f"fairness-monitor {__version__}\n"), version.stderr
    checked = container.run("fairness-monitor", "check-config", f"/{CONFIG_PATH}")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "model triage" in checked.stdout


def check_service(container: Container, output: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    here = {"FAIRNESS_MONITOR__SERVER__LISTEN": address}
    health: list[str] = container.settings["Healthcheck"]["Test"][1:]
    with started(container, output, **here) as process:

        def alive() -> bool:
            assert process.poll() is None, f"the service has ended:\n{output.read_text()[-3000:]}"
            return container.run(*health, **here).returncode == 0

        wait_until(alive, 30, "the health check passes")
        assert call("GET", f"http://{address}/livez").status == 200
        assert call("POST", f"http://{address}/v1/events", EVENT).status == 401
        headers = {"Authorization": "Bearer a-token-for-this-test", "Content-Type": "application/x-ndjson"}
        posted = call("POST", f"http://{address}/v1/events", EVENT, headers)
        assert posted.status in (200, 202), posted.text
        counted = 'fairness_predictions_total{model="triage"} 1.0'
        scrape = partial(call, "GET", f"http://{address}/metrics")
        wait_until(lambda: counted in scrape().text, 20, "the event that was posted is counted")
        os.kill(first_process(process), signal.SIGTERM)
        assert process.wait(30) == 0, output.read_text()[-3000:]
    assert container.run(*health, **here).returncode == 1
    for line in output.read_text().splitlines():
        json.loads(line)


def test_the_image(tmp_path: Path) -> None:
    """One test, because the image takes long to build: settings, files, commands, the service."""
    if reason := _missing():
        pytest.skip(reason)
    begun = time.monotonic()
    with built_image(tmp_path / "buildah") as buildah:
        sizes = {
            image["names"][0].partition(":")[0]: image["size"]
            for image in json.loads(buildah("images", "--json"))
            if image["names"]
        }
        print(f"image {sizes[IMAGE]}, base {sizes[BASE]}, made in {time.monotonic() - begun:.0f} s")
        settings = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
        check_settings(settings)
        root = Path(buildah("mount", buildah("from", "--pull-never", IMAGE)))
        check_files(root)
        # An engine makes the place for what is mounted; here the file is put there.
        (root / CONFIG_PATH).parent.mkdir()
        (root / CONFIG_PATH).write_text(CONFIG)
        container = Container(root, settings)
        check_commands(container)
        check_service(container, tmp_path / "service.log")
