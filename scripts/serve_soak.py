#!/usr/bin/env python3
"""Soak of `opensora serve`: short jobs with random cancels and SIGKILLs, of which none may be lost.

    scripts/serve_soak.py target/release/opensora [--jobs 200] [--kills 2] [--seed 1]

A number of jobs is created over HTTP while others run. Some are cancelled at random moments, and the server
is killed (SIGKILL) and started again at random moments. Twice, 1,000 connections are opened at once. At the
end, every job that was acknowledged has a final status that fits what was done to it, every completed one has
a whole video, and the server's memory after the last job is at most 5 % above that after half of the jobs.
Needs nothing but Python.
"""

import argparse
import json
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

PROMPT = "a red circle moves to the right on a black background"


class Server:
    def __init__(self, program, folder):
        self.program, self.folder, self.process, self.url = program, folder, None, None

    def start(self):
        command = [self.program, "serve", "--port", "0", "--out", self.folder, "--json", "--quiet",
                   "--max-queued", "1000"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = json.loads(self.process.stdout.readline())["url"]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def json(self, method, path, body=None):
        return json.loads(self.call(method, path, body))

    def resident(self):
        """Bytes in memory."""
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise RuntimeError("no VmRSS")

    def all(self):
        found, after = [], ""
        while True:
            page = self.json("GET", f"/v1/videos?limit=100&order=asc{after}")
            found += page["data"]
            if not page["has_more"]:
                return found
            after = "&after=" + page["last_id"]

    def wait_idle(self, limit):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            metrics = self.call("GET", "/metrics").decode()
            counts = {status: int(float(line.rsplit(" ", 1)[1])) for line in metrics.splitlines()
                      for status in ("queued", "in_progress")
                      if line.startswith(f'opensora_jobs{{status="{status}"}}')}
            if sum(counts.values()) == 0:
                return
            time.sleep(0.2)
        raise SystemExit("FAILED: jobs do not end")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        soak(args, rng, Server(args.program, folder))


def create(server, rng):
    body = {"prompt": PROMPT, "num_frames": rng.choice([1, 2, 4]), "steps": rng.choice([2, 3, 4]),
            "seed": rng.randrange(1 << 32)}
    return server.json("POST", "/v1/videos", body)["id"]


def storm(server, connections):
    """Opens many connections at once, some idle, some in the middle of a request, some with a whole one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * connections), hard))
    host = server.url.removeprefix("http://")
    address = (host.rsplit(":", 1)[0], int(host.rsplit(":", 1)[1]))
    kinds = [b"", b"GET /v1/videos HT", f"GET /v1/videos HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(),
             f"POST /v1/videos HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
             "Content-Length: 60000\r\n\r\n{".encode()]
    job = server.json("POST", "/v1/videos", {"prompt": PROMPT, "steps": 200})["id"]
    sockets = []
    for index in range(connections):
        sockets.append(socket.create_connection(address))
        try:
            sockets[-1].sendall(kinds[index % len(kinds)])
        except OSError:
            pass  # rejected already
    answers = {}
    for index, connection in enumerate(sockets):
        if index % len(kinds) == 2:
            connection.settimeout(60)
            try:
                answer = connection.recv(12)[9:12].decode() or "closed"
            except OSError:
                answer = "closed"
            answers[answer] = answers.get(answer, 0) + 1
    peak = server.resident()
    for connection in sockets:
        connection.close()
    time.sleep(1)
    state = server.json("GET", f"/v1/videos/{job}")
    assert state["status"] in ("in_progress", "completed"), state
    server.json("DELETE", f"/v1/videos/{job}")
    print(f"{connections} connections at once: whole requests were answered {answers}; {peak / 1e6:.1f} MB")
    return job, state["status"]


def soak(args, rng, server):
    began = time.monotonic()
    server.start()
    acknowledged, cancelled = [], set()
    half = args.jobs // 2

    def note(ended):
        job, status = ended
        if status == "in_progress":
            acknowledged.append(job)
            cancelled.add(job)

    kills = rng.sample(range(10, half - 20), args.kills)
    before = 0
    for index in range(args.jobs):
        if index in kills:
            server.kill()
            server.start()
        if index == half:
            # This process has loaded its models, made videos of all lengths and had its most connections by now.
            server.wait_idle(600)
            note(storm(server, args.connections))
            server.wait_idle(600)
            before = server.resident()
        acknowledged.append(create(server, rng))
        if rng.random() < 0.3:
            victim = rng.choice(acknowledged[-20:])
            try:
                server.json("POST", f"/v1/videos/{victim}/cancel", {})
                cancelled.add(victim)
            except urllib.error.HTTPError as error:
                assert error.code == 409, error.code  # it has ended already
        time.sleep(rng.random() * 0.1)
    server.wait_idle(600)
    note(storm(server, args.connections))
    server.wait_idle(600)
    after = server.resident()

    videos = {video["id"]: video for video in server.all()}
    problems = []
    for job in acknowledged:
        video = videos.get(job)
        expected = "cancelled" if job in cancelled else "completed"
        if video is None:
            problems.append(f"{job}: lost")
        elif video["status"] != expected:
            problems.append(f"{job}: {video['status']}, expected {expected}: {video['error']}")
        elif expected == "completed":
            content = server.call("GET", f"/v1/videos/{job}/content")
            whole = content[4:8] == b"ftyp" if video["num_frames"] > 1 else content[:4] == b"\x89PNG"
            if not whole:
                problems.append(f"{job}: its content is no video")
    if len(videos) != len(acknowledged):
        problems.append(f"{len(videos)} jobs, expected {len(acknowledged)}")
    growth = (after - before) / before
    if growth > 0.05:
        problems.append(f"memory grew by {growth:.1%}")
    code = server.stop()
    if code != 143:
        problems.append(f"exit code {code}, expected 143")
    print(f"{len(acknowledged)} jobs, {len(cancelled)} cancelled, {args.kills} SIGKILLs, "
          f"{time.monotonic() - began:.0f} s; memory {before / 1e6:.1f} MB before the last "
          f"{args.jobs - half} jobs, {after / 1e6:.1f} MB after ({growth:+.1%})")
    for problem in problems:
        print("FAILED:", problem)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
