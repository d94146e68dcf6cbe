"""A Ray cluster of several nodes on this machine, each of processes of its own, for tests and benchmarks.

Its ports, folder and token are its own, and it listens on 127.0.0.1: other clusters of the machine are left alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PATIENCE_S = 180  # before a node that does not start is given up


class LocalCluster:
    """A head and as many more nodes as are added; a context manager that ends them all.

    Args:
        cpus: CPUs of the head, by name.
        flags: More words for `ray start` of the head.
        node_types: What an autoscaler may add: resources and the largest number of each type, by name. None for no
            autoscaler.

    Attributes:
        env: The environment in which a program connects to the cluster.
        dashboard: Where jobs are submitted to.
    """

    def __init__(
        self, cpus: int = 1, *flags: str, node_types: Mapping[str, tuple[dict[str, float], int]] | None = None
    ) -> None:
        self.folder = tempfile.mkdtemp(prefix="ray")  # short: it holds sockets
        port, dashboard, agent, client = free_ports(4)
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        away = ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")  # Ray takes the last for "one node only"
        self.env = {name: value for name, value in os.environ.items() if name not in away}
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_ADDRESS": self.address}
        self.env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_maximum_startup_concurrency": "16"}
        if node_types is not None:
            self.env["RAY_FAKE_CLUSTER"] = "1"
        self.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        head = [
            *("--head", f"--port={port}", f"--temp-dir={self.folder}", f"--ray-client-server-port={client}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        ]
        if node_types is not None:
            head.append(f"--autoscaling-config={self._autoscaling(cpus, node_types)}")
        self.nodes: list[subprocess.Popen] = []
        self._start(cpus, *head, *flags)

    def add_node(self, cpus: int = 1) -> subprocess.Popen:
        """Start one more node; `kill_tree` takes it away at once, as a cloud does."""
        (agent,) = free_ports(1)
        return self._start(cpus, f"--address={self.address}", f"--dashboard-agent-listen-port={agent}")

    def _start(self, cpus: int, *flags: str) -> subprocess.Popen:
        command = ["ray", "start", "--block", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", *flags]
        env = {name: value for name, value in self.env.items() if name != "RAY_ADDRESS"}
        log = Path(self.folder) / f"node-{len(self.nodes)}.log"
        with log.open("w") as stream:
            node = subprocess.Popen(
                command, env=env, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, cwd=self.folder
            )
        self.nodes.append(node)
        until = time.monotonic() + PATIENCE_S
        while "--block" not in log.read_text():
            if node.poll() is not None or time.monotonic() > until:
                said = log.read_text()
                self.stop()
                raise RuntimeError(f"a node did not start: {said}")
            time.sleep(0.2)
        return node

    def _autoscaling(self, cpus: int, node_types: Mapping[str, tuple[dict[str, float], int]]) -> str:
        """Write a configuration of Ray's pretended cloud, which starts nodes as processes of this machine."""
        types = {
            name: {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most}
            for name, (resources, most) in node_types.items()
        }
        types["head"] = {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}
        lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
        lists = (*lists, "cluster_synced_files", "head_start_ray_commands", "worker_start_ray_commands")
        provider = {"type": "fake_multinode", "gcs_address": self.address, "use_node_id_as_ip": True}
        provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
        config = {
            **{"cluster_name": "local", "provider": provider, "available_node_types": types, "head_node_type": "head"},
            **{"max_workers": sum(most for _, most in node_types.values()), "upscaling_speed": 100.0},
            **{"idle_timeout_minutes": 5, "auth": {}, "file_mounts": {}, "file_mounts_sync_continuously": False},
            **{name: [] for name in lists},
        }
        path = Path(self.folder) / "autoscaling.yaml"
        path.write_text(yaml.safe_dump(config))
        return str(path)

    def start(self, *command: str | Path, **env: str) -> subprocess.Popen:
        """Start a program of this Python in the cluster's environment; its output comes as one text."""
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            start_new_session=True,
        )

    def submit(self, *command: str | Path, **env: str) -> subprocess.CompletedProcess:
        """Submit a job with the project's folder, follow its log to the end, and return what `ray` printed."""
        submit = ("job", "submit", "--working-dir", ROOT, "--", "python", *command)
        return self.ray(*submit, **{"RAY_ADDRESS": self.dashboard, **env})

    def ray(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess:
        """Run Ray's command line in the cluster's environment."""
        return subprocess.run(
            ["ray", *map(str, words)], env=self.env | env, cwd=ROOT, capture_output=True, text=True, check=False
        )

    def stop(self) -> None:
        """End all nodes and delete their folder."""
        for node in reversed(self.nodes):
            if node.poll() is None:
                kill_tree(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, beyond those that Ray gives its workers (10,002 to 19,999)."""
    with_sockets = [socket.socket() for _ in range(count)]
    ports = []
    for sock in with_sockets:
        sock.bind(("127.0.0.1", 0))
        ports.append(sock.getsockname()[1])
    for sock in with_sockets:
        sock.close()
    return ports


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of all processes below one, by process id, parents first."""
    children: dict[int, list[int]] = {}
    names = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            children.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return {one: names.get(one, "") for one in found[1:]}


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process and all below it, parents first, so that none can start another."""
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
