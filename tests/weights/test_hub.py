"""Models by their ids on the Hugging Face hub, fetched from a server of our own that speaks its protocol."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from inkwash.files import ModelFileError
from inkwash.weights.bytes.hub import is_hub_id, wanted
from inkwash.weights.models.convert import convert

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Answers as the hub does, for repositories that are folders; `asked` are the files that were fetched."""

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.asked = root, []
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            folder = self.server.root / repo
            if not folder.is_dir():
                return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            if "/tree/" in path:
                rows = [
                    {
                        "type": "file",
                        "path": f,
                        "size": (folder / f).stat().st_size,
                        "oid": digest(folder / f),
                    }
                    for f in files
                ]
                return self.send(200, json.dumps(rows).encode(), {})
            about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            return self.send(200, json.dumps(about).encode(), {})
        repo, _, rest = path.strip("/").partition("/resolve/")
        file = self.server.root / repo / rest.partition("/")[2]
        if not file.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        if body:
            self.server.asked.append(file.name)
        self.send(
            200,
            file.read_bytes(),
            {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "none"},
            body,
        )

    def send(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def hub(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(tiny, root / "someone/tiny")
    for part in (
        "unet",
        "vae",
    ):  # as many repositories have them: the same in half precision, and in the old format
        own = root / "someone/tiny" / part / "diffusion_pytorch_model"
        for other in (".fp16.safetensors", ".bin"):
            shutil.copy(own.with_suffix(".safetensors"), own.with_name(own.name + other))
    (root / "someone/single").mkdir()
    convert(tiny, root / "someone/single/tiny.safetensors", "single")
    shutil.copytree(root / "someone/single", root / "someone/two")
    shutil.copy(root / "someone/two/tiny.safetensors", root / "someone/two/other.safetensors")
    server = Hub(root)
    yield server
    server.shutdown()


def test_a_folder_is_fetched_once_and_then_read_without_a_network(
    hub: Hub, tiny: Path, tmp_path: Path
) -> None:
    """In new processes, as a user does it."""

    def generate(url: str, *options: str, **env: str) -> subprocess.CompletedProcess:
        given = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": url, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        run = ["generate", "a", "--steps", "1", "--seed", "1", "--model", "someone/tiny", *options]
        run = [sys.executable, "-m", "inkwash", *run, "--output", str(tmp_path / "picture.png")]
        return subprocess.run(run, env=os.environ | given | env, capture_output=True, text=True, timeout=120)

    hub.asked.clear()
    ran = generate(hub.url)
    assert ran.returncode == 0, ran.stderr
    # one set of weights of each part, and nothing twice
    assert sorted(name for name in hub.asked if name.endswith((".safetensors", ".bin"))) == [
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
    ]
    first = (tmp_path / "picture.png").read_bytes()
    assert b"someone/tiny" in first  # the recipe names it
    ran = generate("http://127.0.0.1:9", "--offline")
    assert ran.returncode == 0, ran.stderr
    again = (tmp_path / "picture.png").read_bytes()
    assert again == first


FETCHES = """
import json, sys
from inkwash.files import ModelFileError
from inkwash.weights.bytes.hub import fetch

for name, offline in json.load(sys.stdin):
    try:
        print(fetch(name, offline=offline))
    except ModelFileError as error:
        print("error:", error)
"""


def test_single_files_and_what_is_not_there(hub: Hub, tmp_path: Path) -> None:
    fetches = {
        ("someone/single", False): "tiny.safetensors",
        ("someone/single", True): "tiny.safetensors",
        ("someone/two/other.safetensors@main", False): "other.safetensors",
        (
            "someone/two",
            False,
        ): "several models; name one: someone/two/other.safetensors, someone/two/tiny.safetensors",
        ("someone/none", False): "error: someone/none can't be fetched: ",
        ("someone/two/third.safetensors", False): "error: someone/two/third.safetensors can't be fetched: ",
        ("someone/tiny", True): "someone/tiny is not in the hub's cache, and there is no network to fetch it",
        ("someone/tiny/a.safetensors", True): "is not in the hub's cache",
    }
    hub.asked.clear()
    ran = subprocess.run(
        [sys.executable, "-c", FETCHES],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url},
        input=json.dumps(list(fetches)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = ran.stdout.splitlines()
    assert len(lines) == len(fetches), ran
    for said, line in zip(fetches.values(), lines, strict=True):
        assert said in line
    assert hub.asked == ["tiny.safetensors", "other.safetensors"]


NAMES = [
    "model_index.json",
    "README.md",
    "v1-5-pruned.safetensors",
    "scheduler/scheduler_config.json",
    "safety_checker/model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "unet/config.json",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",
]


def test_wanted_is_one_set_of_weights() -> None:
    plain = wanted(NAMES, None, "a/b")
    common = {name for name in NAMES if name.endswith((".json", ".txt")) and "index.json" not in name[10:]}
    unet = {name for name in NAMES if "unet/diffusion_pytorch_model" in name and "fp16" not in name}
    assert set(plain) == common | unet | {"text_encoder/model.safetensors", "vae/diffusion_pytorch_model.bin"}
    assert len(plain) == len(set(plain))
    with pytest.raises(ModelFileError, match="vae has no weights of the variant fp16"):
        wanted(NAMES, "fp16", "a/b")
    half = wanted([*NAMES, "vae/diffusion_pytorch_model.fp16.safetensors"], "fp16", "a/b")
    assert [name for name in half if name.endswith((".safetensors", ".bin"))] == [
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]


def test_what_is_an_id() -> None:
    assert all(map(is_hub_id, ("a/b", "a-b/c.d", "a/b@fp16", "a/b/c.safetensors", "a/b/c/d.ckpt@main")))
    assert not any(map(is_hub_id, ("mini", "a/b/c", "/a/b", "./a/b", "a//b", "")))
