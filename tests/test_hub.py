import base64
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from erase.bundled import ERASURES
from erase.erasure.erasure import Erasure
from erase.erasure.weights import DELTAS

INK = ERASURES / "ink style"
PUSH = """
import sys
from erase import Erasure
print(Erasure.from_pretrained(sys.argv[1]).push_to_hub("someone/no-ghost", private=True))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as takes commits of a model repository."""

    def do_GET(self):
        if "/tree/main" not in self.path:
            return self.send_error(404)
        there = [{"type": "file", "path": p, "oid": "0", "size": 1} for p in self.server.files]
        return self.answer(there)

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path.endswith("/commit/main"):
            for entry in map(json.loads, asked.splitlines()):
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[entry["value"]["path"]] = content
                elif entry["key"] == "deletedFile":
                    del self.server.files[entry["value"]["path"]]
        elif not path.endswith("/preupload/main"):
            self.server.asked[path] = json.loads(asked)
        plain = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            for file in json.loads(asked.splitlines()[0]).get("files", ())
        ]
        address = f"http://{self.headers['Host']}/someone/no-ghost"
        answer = {"url": address, "warnings": [], "errors": [], "files": plain}
        answer |= {"commitUrl": f"{address}/commit/1", "commitOid": "1", "success": True}
        self.answer(answer)

    def answer(self, answer):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


@contextmanager
def local_hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        hub.files, hub.asked = {}, {}
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


def test_what_is_published_is_the_folder_that_is_saved(tmp_path):
    saved = tmp_path / "saved"
    Erasure.from_pretrained(INK).save_pretrained(saved)
    others = {".gitattributes": b"*", "grid.png": b"picture"}
    with local_hub() as hub:
        hub.files |= others | {DELTAS: b"of an erasure that was there before"}
        address = f"http://127.0.0.1:{hub.server_port}"
        told = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_none"}
        told["HF_HOME"] = str(tmp_path / "cache")
        pushed = subprocess.run(
            [sys.executable, "-c", PUSH, str(INK)],
            env=os.environ | told, check=True, capture_output=True, text=True,
        )  # fmt: skip
    assert pushed.stdout.strip() == f"{address}/someone/no-ghost"
    created = hub.asked["/api/repos/create"]
    assert created.get("private") or created["visibility"] == "private"  # as old clients say it
    assert hub.asked["/api/validate-yaml"]["content"] == hub.files["README.md"].decode()
    assert hub.files == {path.name: path.read_bytes() for path in saved.iterdir()} | others
