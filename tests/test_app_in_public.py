"""The app among strangers: what they post, how they crowd, how they leave, how it is stopped."""

import json
import os
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from hosts import CATALOGUE, build_tiny_pipeline

from erase.app import build, door
from erase.app.jobs import Cancelled, until
from erase.app.settings import PUBLIC, AppConfig
from erase.app.visitors import Visitors
from erase.core.fingerprint import module_fingerprint
from erase.support.progress import Bar

pytestmark = pytest.mark.xdist_group("public")  # served once
SECONDS, LONGEST, CROWD = 60, 300, 60
PROMPT = "a ghost in noto style"


def small_model(pipeline, folder: Path, **options) -> AppConfig:
    """An app around a model saved to a folder, which knows the bundled concepts by name."""
    pipeline.save_pretrained(folder)
    (folder / "concepts.json").write_text(json.dumps(asdict(CATALOGUE)))
    return AppConfig(model=str(folder), **options)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An app around the tiny model among strangers: its address, studio, config and folder."""
    root = tmp_path_factory.mktemp("served")
    config = small_model(build_tiny_pipeline(), root / "tiny", public=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(root))
        patch.setattr(tempfile, "tempdir", str(root))
        patch.setattr(door, "GONE_SECONDS", 0.2)
        with build.served(config, quiet=True) as (address, studio):
            api = httpx.Client(base_url=f"{address}gradio_api/", timeout=SECONDS)
            listing = httpx.get(f"{address}config").json()
            yield SimpleNamespace(api=api, studio=studio, root=root, listing=listing)


def drawing(seed, steps=2, prompt=PROMPT):
    return [prompt, [], 1.0, seed, steps, False]


def answer(api, event):
    """The last thing that is told of a job."""
    *_, kind, told = [line for line in api.get(f"call/generate/{event}").text.splitlines() if line]
    return kind.removeprefix("event: "), json.loads(told.removeprefix("data: "))


def joined(api, data, endpoint="generate"):
    return api.post(f"call/{endpoint}", json={"data": data})


def waiting(api):
    return api.get("queue/status").json()["queue_size"]


def becomes(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def base_of(studio):
    parts = studio.model.pipeline.components
    return [module_fingerprint(parts[name]) for name in ("unet", "text_encoder", "vae")]


def is_sentence(said):
    return (
        isinstance(said, str) and 0 < len(said) <= LONGEST and "\n" not in said
        and "Traceback" not in said and said.endswith((".", "?"))
    )  # fmt: skip


def test_nothing_can_be_uploaded(app):
    before = set(app.root.rglob("*"))
    for path in ("upload", "upload/", "upload?upload_id=1"):
        refused = app.api.post(path, files={"files": b"0" * 900_000})
        assert refused.status_code == 403
        assert is_sentence(refused.json()["detail"])
    for path in ("component_server", "process_recording", "vibe-edit", "run-history/connect"):
        assert is_sentence(app.api.post(path, json={}).json()["detail"])
    assert set(app.root.rglob("*")) == before


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b'{"data": [', b'{"data": 1}', b'{"data": []}',
        b'{"data": [1, 2, 3, 4, 5, 6, 7]}',
        b'{"data": [NaN, [], 1, 0, 2, false]}', b'{"data": ["a", [], 1e999, 0, 2, false]}',
        b'{"data": ["a", [], 1, 1' + b"0" * 99 + b', 2, false]}',
        b'{"data": [{}, [], 1, 0, 2, false]}',
        b'{"data": ["a", [["b"]], 1, 0, 2, false]}', b'{"data": ["\\ud800", [], 1, 0, 2, false]}',
        b'{"data": ["\xff", [], 1, 0, 2, false]}', b'{"data": ["' + b"a" * 100_000 + b'"]}',
        b'{"data": ' + b"[" * 9_999 + b"]" * 9_999 + b"}",
        b'{"data": ["a", [], 1, 0, 2, false], "session_hash": 3}',
        b'{"data": ["a", [], 1, 0, 2, false], "session_hash": "' + b"a" * 999 + b'"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["call/generate", "queue/join", "run/generate", "call/nothing"])
def test_a_call_that_is_none_is_refused_in_one_sentence(app, path, body):
    refused = app.api.post(path, content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code in (400, 404, 413)
    assert is_sentence(refused.json()["detail"])


def test_every_argument_of_every_endpoint_is_checked(app):
    values = {part["id"]: part["props"].get("value") for part in app.listing["components"]}
    before = base_of(app.studio)
    endpoints = [one for one in app.listing["dependencies"] if one["inputs"]]
    assert len(endpoints) > 10
    for endpoint in endpoints:
        good = [values[part] for part in endpoint["inputs"]]
        for place in range(len(good)):
            data = [*good[:place], -1.5, *good[place + 1 :]]
            asked = {"data": data, "fn_index": endpoint["id"], "session_hash": "forger"}
            assert app.api.post("queue/join", json=asked).status_code == 200
            said = told(app.api, "forger")
            assert is_sentence(said), (endpoint["api_name"], data, said)
    assert base_of(app.studio) == before


def told(api, session):
    """What is said of the session's one job when it fails."""
    lines = api.get("queue/data", params={"session_hash": session}).text.splitlines()
    messages = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    (last,) = (one for one in messages if one["msg"] == "process_completed")
    return last["output"].get("error")


@pytest.mark.parametrize(
    ("endpoint", "data"),
    [
        ("generate", ["a", ["no"], 1.0, 0, 2, False]), ("generate", drawing(0, 51)),
        ("generate", drawing(-1)), ("generate", drawing(0.5)), ("generate", drawing(None)),
        ("generate", ["a" * 301, [], 1.0, 0, 2, False]), ("generate", ["a", [], 9, 0, 2, False]),
        ("erase", [["ghost"], [], "", "no", "{}", 4, 4]),
        ("erase", [["ghost"], [], "", "retrain", "{}", 4, 4]),
        ("erase", [["no"], [], "", "projection", "{}", 4, 4]),
        ("erase", [["ghost"] * 9, [], "", "projection", "{}", 4, 4]),
        ("erase", [["ghost"], [], "", "projection", '{"strength": NaN}', 4, 4]),
        ("erase", [["ghost"], [], "", "projection", '{"strength": 1e39}', 4, 4]),
        ("erase", [["ghost"], [], "", "projection", '{"rank": Infinity}', 4, 4]),
        ("erase", [["ghost"], [], "", "projection", "{}", 4, 10**9]),
        ("where", ["no", None]), ("attack", ["no", "recall", "{}", 4]), ("matrix", [None]),
        ("attack", [None, "../../no", "{}", 4]), ("classify", ["12", "projection", "{}"]),
        ("classify", ["3", "no", "{}"]),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_told_in_one_sentence(app, endpoint, data):
    kind, said = answer(app.api, joined(app.api, data, endpoint).json()["event_id"])
    assert kind == "error"
    assert is_sentence(said["error"])


@contextmanager
def busy(app):
    """While in force, somebody who listens has the model, and the line stands still."""
    with ThreadPoolExecutor(1) as pool, app.studio.lock:
        first = pool.submit(answer, app.api, joined(app.api, drawing(1)).json()["event_id"])
        becomes(lambda: waiting(app.api) == 0)
        yield
    assert first.result()[0] == "complete"


def test_a_visitor_has_so_many_jobs_in_line_and_others_wait_behind(app):
    asked = {"data": drawing(2), "session_hash": "greedy", "fn_index": None}
    with ThreadPoolExecutor(2) as pool, busy(app):
        some = [app.api.post("call/generate", json=asked) for _ in range(PUBLIC.jobs + 3)]
        assert [one.status_code for one in some] == [200] * PUBLIC.jobs + [429] * 3
        assert is_sentence(some[-1].json()["detail"])
        heard = pool.submit(app.api.get, "queue/data", params={"session_hash": "greedy"})
        other = pool.submit(answer, app.api, joined(app.api, drawing(3)).json()["event_id"])
        time.sleep(2 * door.GONE_SECONDS)
        assert waiting(app.api) == PUBLIC.jobs + 1
    assert heard.result().text.count("process_completed") == PUBLIC.jobs
    assert other.result()[0] == "complete"


def test_what_nobody_listens_to_leaves_the_line(app, monkeypatch):
    before = set(app.studio._drawn)
    with busy(app):
        monkeypatch.setattr(door, "LATE_SECONDS", 0.2)
        events = [joined(app.api, drawing(seed)).json()["event_id"] for seed in range(100, 150)]
        becomes(lambda: waiting(app.api) == 0)
        late = app.api.get(f"call/generate/{events[0]}")
        assert late.status_code == 404
        assert is_sentence(late.json()["detail"])
        monkeypatch.undo()
    assert answer(app.api, joined(app.api, drawing(5)).json()["event_id"])[0] == "complete"
    assert not {100, 101} & {key[1] for key in set(app.studio._drawn) - before}


def test_a_drawing_ends_between_steps_when_its_visitor_goes(app, monkeypatch):
    left, told = [], Visitors.unheard
    monkeypatch.setattr(
        Visitors, "unheard", lambda here, session: told(here, session) or left.append(session)
    )
    with app.studio.lock:
        event = joined(app.api, drawing(6)).json()["event_id"]
        with app.api.stream("GET", f"call/generate/{event}"):
            becomes(lambda: waiting(app.api) == 0)
        becomes(lambda: event in left)
    assert answer(app.api, joined(app.api, drawing(7)).json()["event_id"])[0] == "complete"
    assert 6 not in {key[1] for key in app.studio._drawn}


def test_work_tells_no_more_steps_once_it_is_stopped():
    stop = threading.Event()
    with until(stop), Bar(total=5, mininterval=0) as bar:
        bar.update()
        stop.set()
        with pytest.raises(Cancelled):
            bar.update()


def test_a_crowd_is_served_in_turn_and_leaves_nothing(app):
    before = base_of(app.studio)

    def visit(number):
        event = joined(app.api, drawing(1)).json()["event_id"]
        return (
            answer(app.api, event)[0] if number % 3 == 0 else "complete"
        )  # the others never listen

    with ThreadPoolExecutor(CROWD) as pool:
        assert {*pool.map(visit, range(CROWD))} == {"complete"}
    (root,) = app.root.glob("erase-app-*")
    assert len([one for one in root.iterdir() if len(one.name) == 24]) <= PUBLIC.visitors
    assert base_of(app.studio) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_when_the_app_is_told_to_end(tmp_path, monkeypatch, number):
    config = small_model(build_tiny_pipeline(), tmp_path / "tiny", public=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    found = []

    def tell(told: float) -> None:
        found.extend(tmp_path.glob("erase-app-*"))
        os.kill(os.getpid(), number)

    launched = build.gr.Blocks.launch

    def launch(*args, **options):
        threading.Timer(0.2, tell, [0.0]).start()
        return launched(*args, **options)

    monkeypatch.setattr(build.gr.Blocks, "launch", launch)
    try:
        with pytest.raises(KeyboardInterrupt):
            build.serve(config)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert len(found) == 1
    assert not list(tmp_path.glob("erase-app-*"))
