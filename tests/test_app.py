import socket
import threading
import time
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import gradio as gr
import pytest
import torch
from diffusers import DiffusionPipeline
from gradio_client import Client
from gradio_client.exceptions import AppError
from hosts import build_tiny_pipeline
from PIL import Image, ImageChops
from test_app_in_public import small_model
from tiny_families import build_family

from erase.app import build
from erase.app.compare_tab import NEARBY, compare_tab
from erase.app.context import Context
from erase.app.jobs import Cancelled, Preview, Progress, followed
from erase.app.options import options_of, with_options
from erase.app.settings import PUBLIC, AppConfig, Limits
from erase.app.shelf import READY
from erase.app.studio import shown
from erase.app.visitors import Made, Visitors
from erase.bundled import EMOJI
from erase.core.fingerprint import module_fingerprint
from erase.erasure.erasure import Erasure
from erase.methods import methods
from erase.support.progress import Bar
from erase.training.config import WATCHING

pytestmark = pytest.mark.xdist_group("app")  # served once
GHOST = "ghost, projection"
PROMPT = "a ghost in noto style"
UNKNOWN = "no erasure"


class Served:
    """The app in public mode, and a client for each visitor."""

    def __init__(self, address, studio):
        self.address, self.studio = address, studio

    def client(self) -> Client:
        return Client(self.address, verbose=False, download_files=True)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("served")))
        with build.served(AppConfig(public=True), quiet=True) as running:
            yield Served(*running)


def generate(client, erasures=(), strength=1.0, prompt=PROMPT, steps=8):
    return client.predict(prompt, list(erasures), strength, 0, steps, False, api_name="/generate")


def erase(client, concepts=("ghost",), method="projection", options="{}"):
    return client.predict(
        list(concepts), [], "", method, options, 4, 4, api_name="/erase"
    )  # fmt: skip


def apart(one, other):
    difference = ImageChops.difference(*(Image.open(p).convert("RGB") for p in (one, other)))
    return max(high for _, high in difference.getextrema())


def test_options_are_those_a_form_can_ask_for_and_name_no_files():
    for method in methods().values():
        options = options_of(method.config)
        assert all(option.kind in (int, float, bool) or option.kind for option in options)
        keys = {option.key for option in options}
        assert not keys & {"mask_file", *(f"training.{name}" for name in WATCHING)}
    found = {option.key: option for option in options_of(methods()["salun"].config)}
    assert {"top", "none", "random", "random_per_layer", "bottom"} == {*found["mask"].kind}
    assert found["density"].about
    assert found["training.learning_rate"].kind is float


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ('{"mask_file": "/etc/passwd"}', "no option mask_file"),
        ('{"mask": "odd"}', "choose of"),
        ('{"training.max_train_steps": 10000}', "at most 300"),
        ('{"training.max_train_steps": 1.5}', "of type int"),
        ('{"density": "all"}', "of type float"),
        ('{"density": 2}', "share of the weights"),
    ],
)
def test_options_that_are_off_are_refused_in_one_sentence(text, said):
    with pytest.raises(ValueError, match=said):
        with_options(methods()["salun"].config(), text, PUBLIC)


def test_options_reach_the_config_within():
    config = with_options(
        methods()["salun"].config(),
        '{"density": 0.1, "training.max_train_steps": 7, "training.use_ema": true}',
        PUBLIC,
    )
    assert config.density == 0.1
    assert config.training.max_train_steps == 7
    assert config.training.use_ema is True


def test_a_number_that_has_a_word_for_none_is_still_a_number():
    """harden.forget_share is a share, or 0."""
    config = methods()["harden"].config()
    (share,) = (option for option in options_of(type(config)) if option.key == "forget_share")
    assert share.kind is float
    for value in (0, 0.1):
        text = f'{{"forget_share": {value}}}'
        assert with_options(config, text, PUBLIC).forget_share == value


def test_an_address_that_cannot_be_served_is_refused_before_the_model_is_opened():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for config in (
            AppConfig("no model", port=port),
            AppConfig("no model", host="host.invalid"),
        ):
            with pytest.raises(ValueError, match=r"Nothing can be served at .*; name another"):
                build.served(config).__enter__()
    with pytest.raises(ValueError, match="port is 65536; give 0 to 65535"):
        AppConfig(port=65536)


def test_a_visitor_has_what_they_made_and_nobody_elses():
    visitors = Visitors({"shared": Made("shared", Erasure({}))}, Limits(erasures=2, visitors=2))
    one, other = visitors.of("one"), visitors.of("../../../etc")
    assert one.folder.parent == other.folder.parent == visitors.root
    for name in ("a", "b", "c"):
        (one.folder / name / "erasure").mkdir(parents=True)
        one.keep(Made(name, Erasure({}), one.folder / name / "erasure"), Limits(erasures=2))
    assert set(visitors.choices(one)) == {"shared", "b", "c"}
    assert not (one.folder / "a").exists()
    with pytest.raises(ValueError, match="no erasure 'b' of yours"):
        visitors.chosen(other, ["b"])
    visitors.of("third")
    assert one.folder.exists()
    assert not other.folder.exists()
    visitors.leave("third")
    visitors.close()
    assert not visitors.root.exists()


def test_a_job_tells_its_progress_and_its_result():
    def work(tell):
        for _ in Bar(range(3), desc="working", mininterval=0):
            pass
        return "made"

    *told, result = followed(work, threading.Event(), 60, lambda what, done: Preview(done))
    assert result == "made"
    assert [e.done for e in told if isinstance(e, Progress)] == [1, 2, 3]
    assert [e.picture for e in told if isinstance(e, Preview)] == [1, 2, 3]
    assert "working: 2 of 3" in str(told[2])


def test_a_job_ends_when_it_is_stopped_and_raises_what_went_wrong():
    stop, steps = threading.Event(), []

    def endless(tell):
        for step in Bar(range(10**6), desc="working", mininterval=0):
            steps.append(step)
            time.sleep(0.001)

    events = followed(endless, stop, 60)
    next(events)
    stop.set()
    with pytest.raises(Cancelled):
        list(events)
    count = len(steps)
    time.sleep(0.05)
    assert len(steps) == count

    with pytest.raises(ValueError, match="longer than 0 s"):
        list(followed(endless, threading.Event(), 0))

    def broken(tell):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        list(followed(broken, threading.Event(), 60))


def test_generate_draws_the_same_for_the_base_and_no_erasure(served):
    (base, erased), figures, nearby = generate(served.client())
    assert apart(base, erased) == 0
    assert "judge" in figures
    assert "8 steps" in figures
    assert nearby == []


def test_erase_makes_what_plain_diffusers_loads(served, tmp_path):
    client = served.client()
    said, _, report, use, download, grid, card, *selectors = erase(client)
    assert said.startswith(f"{GHOST}: done")
    assert "UA" in report
    assert "Suppressed under this protocol" in report
    assert "erase/bundled/emoji" in use
    assert "Limits" in card
    assert Image.open(grid).width > 100
    assert all(GHOST in str(choice["choices"]) for choice in selectors)

    (base, erased), _, nearby = generate(client, [GHOST])
    assert apart(base, erased) > 100
    assert len(nearby) == 4
    (_, unchanged), _, _ = generate(client, [GHOST], 0.0)
    assert apart(base, unchanged) == 0

    archive = download["value"] if isinstance(download, dict) else download
    zipfile.ZipFile(archive).extractall(tmp_path)
    plain = DiffusionPipeline.from_pretrained(EMOJI, safety_checker=None)
    plain.load_lora_weights(tmp_path)
    plain.set_progress_bar_config(disable=True)
    drawn = plain(
        PROMPT, generator=torch.Generator().manual_seed(0), num_inference_steps=8,
        guidance_scale=4.0, output_type="pt",
    ).images[0]  # fmt: skip
    shown(drawn).save(tmp_path / "plain.png")
    assert apart(tmp_path / "plain.png", erased) <= 2


def test_where_attack_and_table_know_what_was_made(served):
    client = served.client()
    erase(client)
    erase(client, ["pizza"])
    change, mask, _, meeting = client.predict(
        GHOST, "pizza, projection", api_name="/where"
    )  # fmt: skip
    assert Image.open(change).width > 300
    assert not mask["visible"]
    assert "cosine" in meeting
    said, table, gallery, _ = client.predict(GHOST, "recall", "{}", 4, api_name="/attack")
    assert said == "Done."
    assert "Pre-ASR" in table
    assert Image.open(gallery).width > 100
    frame, csv, *_ = client.predict(api_name="/measured")
    assert [row[0] for row in frame["data"]] == [*READY, GHOST, "pizza, projection"]
    path = csv["value"] if isinstance(csv, dict) else csv
    assert Path(path).read_text().startswith("erasure,method,UA")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: generate(c, prompt="x" * 10_000), "at most 300"),
        (lambda c: generate(c, prompt=" "), "empty"),
        (lambda c: generate(c, steps=10_000), "10000|10,000|50"),
        (lambda c: generate(c, strength=9.0), "9|1.5"),
        (lambda c: generate(c, ["../../etc/passwd"]), UNKNOWN),
        (lambda c: erase(c, ["gost"]), "did you mean ghost"),
        (lambda c: erase(c, []), "empty"),
        (lambda c: erase(c, options='{"training.checkpoints": "/tmp"}'), "no option"),
        (lambda c: c.predict(GHOST, "recall", "{}", 4, api_name="/attack"), UNKNOWN),
        (lambda c: c.predict("11", "projection", "{}", api_name="/classify"), "choose of"),
    ],
)
def test_what_cannot_be_is_refused_in_words(served, call, said):
    with pytest.raises(AppError, match=said):
        call(served.client())


def test_another_visitors_erasure_cannot_be_reached(served):
    owner, stranger = served.client(), served.client()
    erase(owner)
    with pytest.raises(AppError, match=UNKNOWN):
        generate(stranger, [GHOST])
    forged = served.client()
    forged.session_hash = "../" + owner.session_hash
    with pytest.raises(AppError, match=UNKNOWN):
        generate(forged, [GHOST])


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "app.py", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", str(EMOJI)],
)
def test_no_file_of_the_server_can_be_fetched(served, path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{served.address}gradio_api/file={path}")
    assert refused.value.code in (403, 404)


def test_a_crowd_is_queued_and_the_base_stays_bit_for_bit(served):
    parts = served.studio.model.pipeline.components
    before = [module_fingerprint(parts[name]) for name in ("unet", "text_encoder", "vae")]
    alone = generate(served.client())[0][0]
    with ThreadPoolExecutor(9) as pool:
        erasing = pool.submit(erase, served.client(), ["rocket"])
        drawing = [pool.submit(generate, served.client()) for _ in range(8)]
        assert all(apart(alone, job.result()[0][0]) == 0 for job in drawing)
        assert erasing.result()[0].startswith("rocket, projection: done")
    after = [module_fingerprint(parts[name]) for name in ("unet", "text_encoder", "vae")]
    assert before == after


def test_what_ends_stops_nothing_that_the_same_visitor_draws_by_now(served):
    visitors, one = Visitors(served.studio.offered(), PUBLIC), gr.Request(session_hash="one")
    with closing(visitors), gr.Blocks() as page:
        compare_tab(Context(served.studio, visitors, PUBLIC))
        handler = next(fn.fn for fn in page.fns.values() if fn.api_name == "generate")
        chosen = list(visitors.offered)[:1]
        earlier, later = (handler(PROMPT, chosen, 1.0, seed, 2, False, one) for seed in (901, 902))
        for drawing in (earlier, later):
            next(drawing)
        earlier.close()
        assert len(next(later)[2]) == NEARBY


def test_a_cancelled_erasure_leaves_nothing(served):
    client = served.client()
    parts = served.studio.model.pipeline.components
    before = module_fingerprint(parts["unet"]), module_fingerprint(parts["text_encoder"])
    job = client.submit(["ghost"], [], "", "random_label", "{}", 4, 4, api_name="/erase")
    while not job.outputs():
        assert not job.done()
        time.sleep(0.1)
    job.cancel()
    with served.studio.lock:
        after = module_fingerprint(parts["unet"]), module_fingerprint(parts["text_encoder"])
    assert before == after
    with pytest.raises(AppError, match=UNKNOWN):
        generate(client, ["ghost, random_label"])


@contextmanager
def served_small(pipeline, folder: Path, **options):
    """A client of an app around a tiny model."""
    config = small_model(pipeline, folder, **options)
    with pytest.MonkeyPatch.context() as patch:
        # Set by the app, and read by another that is served beside it.
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        with build.served(config, quiet=True) as (address, _):
            yield Client(address, verbose=False)


def test_every_cell_of_a_small_model_is_judged(tmp_path):
    with served_small(build_tiny_pipeline(), tmp_path / "tiny") as client:
        erase(client)
        said, heat = client.predict(GHOST, api_name="/matrix")
    assert "UA" in said
    assert "CRA" in said
    assert Image.open(heat).width > 100


def test_an_oracle_stands_beside_and_strangers_learn_no_paths(tmp_path):
    build_tiny_pipeline().save_pretrained(tmp_path / "without")
    options = {"oracle": str(tmp_path / "without"), "public": True}
    with served_small(build_tiny_pipeline(), tmp_path / "tiny", **options) as client:
        said, _, report, use, _, _, card, *_ = erase(client)
        _, table, *_ = client.predict(GHOST, "recall", "{}", 4, api_name="/attack")
    assert "oracle" in report
    assert "ASR of the oracle" in table
    for told in (said, report, use, card, table):
        assert str(tmp_path) not in str(told)


def test_another_family_is_compared_erased_and_attacked(tmp_path):
    with served_small(build_family("sdxl"), tmp_path / "xl", public=True) as client:
        assert erase(client)[0].startswith(f"{GHOST}: done")
        (base, erased), *_ = generate(client, [GHOST], steps=2)
        assert apart(base, erased) > 0
        _, table, *_ = client.predict(GHOST, "recall", "{}", 4, api_name="/attack")
    assert "<th scope='row'>recall</th>" in table


def test_a_digit_is_forgotten_beside_a_retrained_model(served, monkeypatch):
    monkeypatch.setattr("erase.app.classifier_tab.EPOCHS", 1)
    said, table, pictures = served.client().predict("3", "projection", "{}", api_name="/classify")
    assert "Verdict: " in said
    assert "retrained" in table
    assert len(pictures) == 3


def test_handlers_of_the_page_are_public_by_name(served):
    named = served.client().view_api(return_format="dict")["named_endpoints"]
    assert {"/generate", "/erase", "/where", "/attack", "/measured", "/matrix", "/classify"} == {
        *named
    }
