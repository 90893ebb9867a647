"""``evaluate.load("pacgen")`` after an installation: in fresh processes, without a network, on odd caches."""

from __future__ import annotations

import http.server
import importlib
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import evaluate
import pytest

import hf_pacgen
from hf_pacgen.command_line.main import main

registration = importlib.import_module("hf_pacgen.register")  # the package has a function of this name
SOURCE = Path(str(registration.__file__))
ROOT = SOURCE.parents[1]
FOLDER = Path("evaluate_modules", "metrics", "evaluate-metric--pacgen")

# Without the package, and so without torch: what a process does that only registers.
ALONE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("registration", {str(SOURCE)!r})
registration = importlib.util.module_from_spec(spec)
spec.loader.exec_module(registration)
"""
COMPUTE = """
results = metric.compute(weights=[0.0], hessian_diagonal=[400.0], hessian_lipschitz=0.0, eta=300.0, epsilon=0.1)
print("score", round(results["pacgen"], 6), type(metric).__module__)
"""
SCORE = "score 0.693147"  # log(0.1 sqrt(400)) = log 2


def fresh_process(code: str, *, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in another process, which knows nothing but these variables."""
    known = ("PATH", "OMP_NUM_THREADS", "SYSTEMROOT")
    kept = {name: os.environ[name] for name in os.environ if name in known or name.startswith("COVERAGE_")}
    environment = {**kept, "PYTHONPATH": str(ROOT), "HOME": str(cwd), **variables}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of modules, for this process and evaluate in it."""
    for name in ("HF_MODULES_CACHE", "XDG_CACHE_HOME", registration.NO_REGISTER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "home" / "modules"))
    # without the caches of other tests, whose packages would be found first
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "evaluate_modules").is_dir()])
    for name in imported():
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path / "home" / "modules"
    for name in imported():
        del sys.modules[name]


def imported() -> list[str]:
    """The modules that evaluate has imported from a cache."""
    return [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]


# ------------------------------------------------------------------------------------------------ fresh processes


def test_import_registers_offline_and_replaces_what_an_earlier_version_left(tmp_path: Path) -> None:
    """Another HF_HOME, no network, and a cache with a stale copy that was changed last."""
    stale = tmp_path / "home" / "modules" / FOLDER / ("0" * 64) / "pacgen.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("raise RuntimeError('the stale copy was loaded')\n")
    later = time.time() + 3600
    os.utime(stale, (later, later))
    ours = stale.parents[1] / registration.VERSION_FOLDER / "pacgen.py"
    ours.parent.mkdir()
    ours.write_text("raise RuntimeError('the module of an earlier version was loaded')\n")

    code = 'import hf_pacgen, evaluate\nmetric = evaluate.load("pacgen")' + COMPUTE
    done = fresh_process(code, cwd=tmp_path, HF_HOME=str(tmp_path / "home"), HF_EVALUATE_OFFLINE="1")
    assert f"{SCORE} hf_pacgen.evaluate_module.pacgen.pacgen" in done.stdout, done.stderr
    assert ours.read_text() == registration.MODULE


def test_a_process_that_never_imports_hf_pacgen_when_name_resolution_fails(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "home")}
    assert fresh_process(ALONE + "registration.register()", cwd=tmp_path, **home).returncode == 0
    code = """
import socket
def fail(*arguments, **settings):
    raise socket.gaierror(-3, "Temporary failure in name resolution")
socket.getaddrinfo = fail
import evaluate
metric = evaluate.load("pacgen")
"""
    by_path = "import hf_pacgen\nmetric = evaluate.load(hf_pacgen.metric_path())"
    done = fresh_process(code + COMPUTE + by_path + COMPUTE, cwd=tmp_path, **home)
    assert done.stdout.count(SCORE) == 2, done.stderr


def test_processes_that_register_at_once(tmp_path: Path) -> None:
    """Several begin at the same moment; meanwhile no folder is ever seen without its module."""
    begin = time.time() + 1.0
    code = ALONE + f"import time\ntime.sleep(max(0, {begin} - time.time()))\nprint(registration.register())"
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    environment.pop("HF_MODULES_CACHE", None)
    processes = [
        subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    folder = tmp_path / "modules" / FOLDER
    while any(process.poll() is None for process in processes):
        for version in folder.glob("?" * 64) if folder.is_dir() else ():
            assert (version / "pacgen.py").read_text() == registration.MODULE
    outputs = [process.communicate() for process in processes]
    module = folder / registration.VERSION_FOLDER / "pacgen.py"
    assert [out.strip() for out, _ in outputs] == [str(module)] * 6
    assert [err for _, err in outputs] == [""] * 6
    assert sorted(path.name for path in folder.iterdir()) == sorted(["__init__.py", registration.VERSION_FOLDER])


def test_registering_needs_the_standard_library_alone(tmp_path: Path) -> None:
    code = ALONE + "registration.register()\nprint({n.split('.')[0] for n in sys.modules} - {'registration'}"
    code += " - sys.stdlib_module_names)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert set(eval(done.stdout)) <= {"__main__", "site", "sitecustomize"}, done.stderr


# ------------------------------------------------------------------------------------------------ this process


class Refusing(http.server.BaseHTTPRequestHandler):
    """A hub that has nothing, or nothing for us."""

    status = 404

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture(params=[404, 401])
def refusing_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    handler = type("Handler", (Refusing,), {"status": request.param})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", False)
        monkeypatch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        monkeypatch.setattr(evaluate.config, "HUB_EVALUATE_URL", address + "/spaces/{path}/resolve/{revision}/{name}")
        yield
        server.shutdown()


def test_a_hub_that_has_no_such_space(cache: Path, refusing_hub: None) -> None:
    assert hf_pacgen.register() is not None
    assert type(evaluate.load("pacgen")).__name__ == "PACGen"


def test_metric_path_needs_no_registration_and_no_network(cache: Path) -> None:
    assert evaluate.config.HF_EVALUATE_OFFLINE
    assert type(evaluate.load(hf_pacgen.metric_path())).__name__ == "PACGen"
    assert not (cache / FOLDER).exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_MODULES_CACHE": "{tmp}/a", "HF_HOME": "{tmp}/b"}, "a"),
        ({"HF_HOME": "{tmp}/b"}, "b/modules"),
        ({"HF_HOME": "~/b"}, "b/modules"),
        ({"XDG_CACHE_HOME": "{tmp}/c"}, "c/huggingface/modules"),
        ({"XDG_CACHE_HOME": "~/c"}, "c/huggingface/modules"),
        ({}, ".cache/huggingface/modules"),
    ],
)
def test_the_cache_is_where_evaluate_has_it(
    variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_MODULES_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    module = hf_pacgen.register()
    assert module == tmp_path / expected / FOLDER / registration.VERSION_FOLDER / "pacgen.py"
    spec = importlib.util.spec_from_file_location("evaluate.config_again", evaluate.config.__file__)
    assert spec is not None and spec.loader is not None
    config = importlib.util.module_from_spec(spec)
    config.__package__ = "evaluate"
    spec.loader.exec_module(config)
    assert Path(os.path.expanduser(config.HF_MODULES_CACHE)) == tmp_path / expected


def test_a_second_time_is_silent_fast_and_writes_nothing(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = hf_pacgen.register()
    assert module is not None
    before = module.stat().st_mtime_ns
    caplog.set_level(logging.DEBUG)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        hf_pacgen.register()
        times.append(time.perf_counter() - began)
    assert statistics.median(times) < 0.005
    assert caplog.records == []
    assert module.stat().st_mtime_ns == before


@pytest.mark.parametrize("what", ["a file in the way", "read-only", "no renaming"])
def test_a_cache_that_cannot_be_written_is_one_line_in_the_log(
    what: str, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "read-only":  # by a failing call: the superuser may write into any folder

        def refuse(*arguments: object, **settings: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
    elif what == "no renaming":

        def refuse_folder(*arguments: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "rename", refuse_folder)
    else:
        cache.parent.mkdir()
        cache.write_text("a file")
    assert hf_pacgen.register() is None
    assert not list(cache.glob("**/*.tmp")) if cache.is_dir() else True
    (record,) = caplog.records
    assert "metric_path()" in record.getMessage() and "HF_HOME" in record.getMessage()


def test_one_process_of_a_machine_tells_of_a_cache_that_cannot_be_written(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert hf_pacgen.register() is None
    assert caplog.records == []


@pytest.mark.parametrize(("value", "registers"), [("1", False), ("true", False), ("0", True), ("", True)])
def test_the_variable_that_turns_it_off(
    value: str, registers: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(registration.NO_REGISTER, value)
    registration.register_on_import()
    assert (cache / FOLDER).exists() is registers


def test_the_command_says_where(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["register"]) == 0
    assert str(cache / FOLDER) in capsys.readouterr().out
    assert (cache / FOLDER / registration.VERSION_FOLDER / "pacgen.py").is_file()


def test_the_command_fails_where_the_cache_cannot_be_written(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    assert main(["register"]) == 2
    assert "could not be registered" in capsys.readouterr().err


def test_metric_path_is_the_folder_of_a_space() -> None:
    names = {path.name for path in Path(hf_pacgen.metric_path()).iterdir()}
    assert names - {"__pycache__"} == {"pacgen.py", "README.md", "app.py", "requirements.txt"}
