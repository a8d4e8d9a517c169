"""Run as a program in an environment with deploy/ray's requirements: a local cluster of two
replicas over mocks, of which one's process is killed under load. Prints what came of it, as JSON.

    ray_cluster.py CHECKOUT PORT
"""

import http.client
import json
import os
import sys
import threading
import time
from pathlib import Path

CHECKOUT, PORT = sys.argv[1], int(sys.argv[2])
sys.path.insert(0, CHECKOUT)
NUM_CLIENTS, PATIENCE_S = 4, 120
CHAT = {"model": "mock", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}

import ray
from ray import serve

from deploy.ray.metal_marlin_app import build


def ask(**more):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=PATIENCE_S)
    try:
        body = json.dumps({**CHAT, **more})
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def servers():
    """Process ids of the servers that replicas of this cluster have started."""
    mine = f"RAY_TEST_OF={os.getpid()}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, environ = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"--uds" in words.split(b"\0") and mine in environ.split(b"\0"):
            found.append(int(folder.name))
    return found


def main():
    environ = {"METAL_MARLIN_MOCK_MODEL": "1", "PYTHONPATH": CHECKOUT}
    environ["RAY_TEST_OF"] = str(os.getpid())
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": environ})
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(build({"model": "models/mock", "replicas": 2}))
    said = {"whole": ask(), "stream": ask(stream=True), "refused": ask(temperature=3)}
    while len(servers()) < 2:  # the second starts when Ray first asks for its health
        ask()
    statuses, stopped = [], threading.Event()

    def client():
        while not stopped.is_set():
            statuses.append(ask()[0])

    threads = [threading.Thread(target=client) for _ in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    while len(statuses) < 20:
        time.sleep(0.05)
    os.kill(servers()[0], 9)
    killed = len(statuses)
    while len(statuses) < killed + 100:
        time.sleep(0.05)
    stopped.set()
    for thread in threads:
        thread.join()
    said |= {"answered": statuses.count(200), "others": [s for s in statuses if s != 200]}
    said["servers"] = len(servers())
    serve.shutdown()
    ray.shutdown()
    print(json.dumps(said))


main()
