#!/usr/bin/env python3
"""Compares the cache of `opensora weights` with that of Python's huggingface_hub, both ways.

A mock of the hub runs on this machine; no other server is contacted. Needs `pip install huggingface_hub`.

    python3 scripts/hub_cache.py target/debug/opensora
"""

import hashlib
import http.server
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "owner/name"


def safetensors(elements: int) -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}})
    return struct.pack("<Q", len(header)) + header.encode() + random.Random(1).randbytes(4 * elements)


FILES = {
    "README.md": b"A stand-in.\n",
    "config.json": b"{}\n",
    "sub/notes.txt": b"below a folder\n",
    "model.safetensors": safetensors(300_000),
}


class StandIn(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does: large files by a redirect to another host, with tags and lengths."""

    requests: list[tuple[str, str]] = []

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = self.path.split("?")[0]
        self.requests.append((self.command, path))
        if path.startswith(f"/api/models/{REPOSITORY}"):
            siblings = [{"rfilename": name} for name in FILES]
            body = {"_id": "0", "id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}
            return self.send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
        if path.startswith("/cdn/"):
            return self.send(200, {}, FILES[path.removeprefix("/cdn/")])
        name = path.split("/resolve/", 1)[-1].split("/", 1)[-1]
        if name not in FILES:
            return self.send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        data = FILES[name]
        headers = {"X-Repo-Commit": COMMIT}
        if name.endswith(".safetensors"):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(data))
            headers["Location"] = f"http://localhost:{self.server.server_port}/cdn/{name}"
            return self.send(302, headers, b"Found")
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return self.send(200, headers | {"ETag": f'"{blob}"'}, data)

    def send(self, status, headers, body):
        first = 0
        if status == 200 and (wanted := self.headers.get("Range")):
            first, last = wanted.removeprefix("bytes=").split("-")
            first, total = int(first), len(body)
            body = body[first : int(last) + 1 if last else total]
            status = 206
            headers = headers | {"Content-Range": f"bytes {first}-{first + len(body) - 1}/{total}"}
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def layout(cache: Path) -> dict[str, str]:
    """Returns all files and links of a repository's folder, but for locks and marks."""
    folder = cache / "models--owner--name"
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main() -> None:
    program = str(Path(sys.argv[1]).resolve())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        os.environ.pop(name, None)
    root = Path(tempfile.mkdtemp())
    os.environ["HF_HOME"] = str(root / "python")

    import huggingface_hub
    from huggingface_hub import hf_hub_download, scan_cache_dir

    def opensora(home: Path, *args: str, offline: bool = False) -> dict:
        environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else ""}
        command = [program, "weights", *args, "--json", "-q"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def contents() -> int:
        return sum(1 for method, path in StandIn.requests if method == "GET" and "/api/" not in path)

    # 1. Written here, read by Python, without a network and then with the hub but without a download.
    ours = root / "rust" / "hub"
    opensora(root / "rust", "fetch", REPOSITORY, *FILES)
    before = contents()
    for name, data in FILES.items():
        for offline in (True, False):
            path = hf_hub_download(REPOSITORY, name, cache_dir=ours, local_files_only=offline)
            assert Path(path).read_bytes() == data, name
    assert contents() == before, "Python downloaded a file that was there"
    scanned = scan_cache_dir(ours)
    assert not scanned.warnings, scanned.warnings
    (found,) = scanned.repos
    assert found.repo_id == REPOSITORY and found.nb_files == len(FILES), found
    assert found.size_on_disk == sum(map(len, FILES.values())), found
    print(f"huggingface_hub {huggingface_hub.__version__} reads {found.nb_files} files of this program")

    # 2. The other way round.
    theirs = root / "python" / "hub"
    for name in FILES:
        hf_hub_download(REPOSITORY, name, cache_dir=theirs)
    before = contents()
    for offline in (True, False):
        fetched = opensora(root / "python", "fetch", REPOSITORY, *FILES, offline=offline)
        for file in fetched["files"]:
            assert file["commit"] == COMMIT, file
            assert Path(file["path"]).read_bytes() == FILES[file["file"]], file
    assert contents() == before, "this program downloaded a file that was there"
    verified = opensora(root / "python", "verify", REPOSITORY)
    assert [file["verdict"] for file in verified["files"]] == ["good"] * len(FILES), verified
    print(f"this program reads {len(FILES)} files of huggingface_hub {huggingface_hub.__version__}")

    # 3. File by file and link by link.
    assert layout(ours) == layout(theirs), (layout(ours), layout(theirs))
    print("both caches have the same files and links")


if __name__ == "__main__":
    main()
