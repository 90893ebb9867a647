"""The Space: what it answers, what it refuses, and the page in a real browser."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import saved_models
from sample_results import sample_result

import hf_pacgen

pytest.importorskip("gradio", reason="gradio is not installed: pip install gradio")

APP = Path(hf_pacgen.metric_path()) / "app.py"
ARTIFACTS = Path(__file__).parents[1] / "artifacts"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
RESULT = sample_result(status=("Ψ is saturated: <b>judge</b> by K(η).",))


@pytest.fixture(scope="module")
def app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pacgen_app", APP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def upload(result: Any = RESULT) -> bytes:
    return json.dumps(result.to_dict()).encode()


# ------------------------------------------------------------------------------------------------ its functions


def test_an_uploaded_result(app: ModuleType) -> None:
    page, chart = app.show_upload(upload())
    for label, value, note in (
        ("Ψ, the published score", "60 ± 1.5", "0.6 ± 0.015 per parameter"),
        (
            "K(η) at η = 1,000",
            "240 ± 12",
            "2.4 ± 0.12 per parameter; 50.0 % size of the weights, 10.0 % the Hessian alone, 40.0 % added by ρ",
        ),
        ("K(η) beyond size", "120 ± 12", "K(η) less its part from the size of the weights"),
        ("K(η) of curvature", "12 ± 1", "½ Σ log(1 + η max(H_ii, 0)"),
        ("Trace of the Hessian", "4.5 ± 0.5", "Σ H_ii, how sharp"),
        ("ρ", "3.25 ± 0.5", "how fast the Hessian of a batch changes nearby"),
        ("Parameters", "100", "scored on 1,000 training examples"),
    ):
        assert f"<small>{label}</small><b>{value}</b><small>{note}" in page
    assert page.count("pacgen-tile'") == 7 and "active" not in page
    assert "Ψ is saturated: &lt;b&gt;judge&lt;/b&gt; by K(η)." in page, "what is uploaded is shown as text"
    assert chart.visible and chart.value is not None
    page, chart = app.show_upload(None)
    assert "Upload the" in page and not chart.visible


def test_a_result_of_release_0_1(app: ModuleType) -> None:
    old = Path(__file__).parents[1] / "results" / "fixtures" / "pacgen-0.1.json"
    page, chart = app.show_upload(old.read_bytes())
    assert "pacgen-tile'" in page and chart.visible and "K(η) at η" in page and "active" not in page
    for unknown in ("beyond size", "of curvature", "added by", "None"):  # what it did not measure is not 0
        assert unknown not in page


def test_a_result_without_modules_or_limits(app: ModuleType) -> None:
    page, chart = app.show_upload(upload(sample_result(by_module={}, status=())))
    assert "pacgen-warning" not in page and not chart.visible


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no JSON", "The uploaded file is not JSON"),
        (b'{"a": 1}', "no result of hf_pacgen"),
        (json.dumps({**RESULT.to_dict(), "version": 99}).encode(), "version 99; this release reads version 1"),
        (b" " * 20_000_001, "more than 20 MB"),
    ],
)
def test_what_is_refused(data: bytes, message: str, app: ModuleType) -> None:
    page, chart = app.show_upload(data)
    assert message in page and "role='alert'" in page and not chart.visible


@pytest.mark.parametrize("name", ["", "../secret", "/etc/passwd", "a/b/c", "a b", "-x", "a..b", "here", "https://x/y"])
def test_names_that_are_none_of_a_model(
    name: str, app: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    page, _ = app.show_model(name, "", "", 8)
    assert "is not the id of a model on the Hugging Face hub: expected owner/name" in page


def test_a_model_when_the_hub_is_out_of_reach(app: ModuleType) -> None:
    page, _ = app.show_model("nobody/no-such-model", "", "", 8)
    assert "could not be looked up on the Hugging Face hub" in page and "upload a result.json instead" in page


def found(**info: Any) -> Any:
    """A hub that has every model, with these files and this many parameters."""
    files = [SimpleNamespace(rfilename=name, size=size) for name, size in info.get("files", {}).items()]
    weights = None if info.get("total") is None else SimpleNamespace(total=info["total"])
    return lambda model: SimpleNamespace(siblings=files, safetensors=weights)


def test_a_model_that_carries_its_result(app: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RESULT.save(tmp_path / "pacgen.json")
    monkeypatch.setattr(app, "_look_up", found(files={"pacgen.json": 9}))
    monkeypatch.setattr(app, "hf_hub_download", lambda model, name, token: tmp_path / name)
    page, chart = app.show_model("owner/name", "", "", 8)
    assert "<b>60 ± 1.5</b>" in page and chart.visible


@pytest.mark.parametrize(
    ("info", "dataset", "message"),
    [
        ({}, "", "owner/name has no pacgen.json. Name the data it was trained on"),
        ({"files": {"pacgen.json": 20_000_001}}, "", "has no pacgen.json"),
        ({"total": 10}, "sst2", "&#x27;sst2&#x27; is not the id of a data set on the Hugging Face hub"),
        ({}, "a/b", "is of unknown size; at most 150,000,000 are scored here"),
        ({"total": 150_000_001}, "a/b", "is of 150,000,001 parameters; at most 150,000,000"),
        ({"total": 10}, "a/b", "The model &#x27;owner/name&#x27; is no folder here, and could not be loaded"),
    ],
)
def test_models_that_are_not_scored(
    info: dict[str, Any], dataset: str, message: str, app: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_look_up", found(**info))
    assert message in app.show_model("owner/name", dataset, "", 8)[0]


def test_a_model_is_scored_on_a_part_of_its_data(app: ModuleType, tmp_path: Path) -> None:
    folder = saved_models.bert(tmp_path / "model")
    data = tmp_path / "train.csv"
    data.write_text("text,label\n" + "good movie,1\nbad food,0\n" * 5)
    result = app.measure(str(folder), str(data), None, 4)
    assert (result.num_examples, result.eta) == (4, 10.0)


def test_an_error_nobody_thought_of_is_shown(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "plot_by_module", lambda result: 1 / 0)
    assert "That did not work: division by zero." in app.show_upload(upload())[0]


def test_the_metric_card_is_shown_without_its_front_matter(app: ModuleType) -> None:
    assert app.metric_card().strip().startswith("# Metric Card for PACGen")


def test_nothing_leaves_the_machine(app: ModuleType) -> None:
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and not app.build().analytics_enabled


# ------------------------------------------------------------------------------------------------ its server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app, started as a Space starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads")),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")}
    process = subprocess.Popen(
        [sys.executable, str(APP)], env={**environment, **settings}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(address, timeout=10).read()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    pytest.fail(f"the app did not start:\n{process.communicate()[0].decode()}")
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=30)


def post(address: str, body: bytes, content_type: str) -> bytes:
    request = urllib.request.Request(address, data=body, headers={"Content-Type": content_type})
    return urllib.request.urlopen(request, timeout=60).read()


def test_a_file_over_20_mb_is_refused_before_it_is_stored(server: str) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.json"\r\n\r\n'
    with pytest.raises(urllib.error.HTTPError, match="413"):
        post(
            f"{server}/gradio_api/upload",
            head + b" " * 20_000_001 + b"\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
        )


def read_result(server: str, path: str) -> str:
    """What the server answers to a client that names this file."""
    body = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
    answer = post(f"{server}/gradio_api/call/read_result", json.dumps(body).encode(), "application/json")
    event = json.loads(answer)["event_id"]
    return urllib.request.urlopen(f"{server}/gradio_api/call/read_result/{event}", timeout=60).read().decode()


def test_what_was_uploaded_can_be_read_and_no_other_file(server: str, tmp_path: Path) -> None:
    RESULT.save(tmp_path / "result.json")
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.json"\r\n\r\n' + upload()
    answer = post(f"{server}/gradio_api/upload", form + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")
    assert "<b>60 \\u00b1 1.5</b>" in read_result(server, json.loads(answer)[0])
    for path in (tmp_path / "result.json", APP.with_name("README.md")):
        assert "event: error" in read_result(server, str(path))
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{server}/gradio_api/file={path}", timeout=60)


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def page(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page in chromium, which may ask this server and nobody else."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1280, "height": 1100},
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(server)
        yield page
        context.close()


def test_the_page_loads(page: Any) -> None:
    page.get_by_role("heading", name="PACGen", exact=True).wait_for()
    page.get_by_role("heading", name="Limitations and Bias").wait_for()
    page.get_by_text("or name a model of the hub").wait_for()
    assert page.title() == "PACGen"
    assert page.locator("#by-module img").count() == 0


def test_a_result_is_uploaded_and_its_chart_is_there(page: Any, tmp_path: Path) -> None:
    RESULT.save(tmp_path / "result.json")
    page.set_input_files("input[type=file]", tmp_path / "result.json")
    chart = page.locator("#by-module img")
    chart.wait_for()
    assert chart.evaluate("image => image.complete && image.naturalWidth > 500")
    tiles = page.locator(".pacgen-tile").all_inner_texts()
    assert len(tiles) == 7 and "60 ± 1.5" in tiles[0] and "40.0 % added by ρ" in tiles[1]
    assert "Ψ is saturated: <b>judge</b> by K(η)." in page.locator(".pacgen-warning").inner_text()
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / ".gitignore").write_text("*\n")
    page.screenshot(path=ARTIFACTS / "space.png", full_page=True)
    foreign = [url for url in page.asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert foreign == [], "nothing comes over the network"


def test_another_file_is_refused(page: Any, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"a": 1}')
    page.locator("button[aria-label*=lear], button[aria-label*=emove]").first.click()
    page.set_input_files("input[type=file]", tmp_path / "other.json")
    page.get_by_role("alert").filter(has_text="no result of hf_pacgen").wait_for()
    assert page.locator("#by-module img").count() == 0


def test_a_hub_model_without_a_connection(page: Any) -> None:
    page.get_by_role("tab", name="Model on the hub").click()
    page.get_by_placeholder("owner/name").first.fill("nobody/no-such-model")
    page.get_by_role("button", name="Show", exact=True).click()
    page.get_by_role("alert").filter(has_text="could not be looked up").wait_for()
