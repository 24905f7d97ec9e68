"""Redis as it is run for availability: three sentinels over a master and a replica; a cluster of three."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import redis
from gateway import free_ports, listens, wait_for
from processes import STOP_S, Process
from redis_harness import Redis as RedisServer

#: What the servers ask for, and what the sentinels do.
USER, PASSWORD, SENTINELS_PASSWORD = "steersman", "p@ss:word", "watch"
MASTER = "quotas"
RIGHTS = ("~*", "&*", "+@all")
ACL = ("--user", USER, "on", f">{PASSWORD}", *RIGHTS, "--user", "default", "on", ">other", *RIGHTS)


class Cluster:
    """Three masters that share the slots; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.servers: list[RedisServer] = []
        self._options: list[tuple[str, ...]] = []
        for number in range(3):
            (folder / f"node{number}").mkdir()
            self.servers.append(RedisServer(folder / f"node{number}"))
            bus = free_ports(1)[0]
            self._options.append(
                (*("--cluster-enabled", "yes", "--cluster-port", str(bus)), "--cluster-node-timeout", "2000")
            )

    @property
    def url(self) -> str:
        """Two of the nodes; the third is learnt."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in self.servers[:2])

    def start(self, number: int) -> None:
        self.servers[number].start(*self._options[number])

    def on(self, number: int, *arguments: Any) -> Any:
        return self.servers[number].command(*arguments)

    def whole(self) -> bool:
        """Everybody knows everybody, and that all slots are held."""
        with suppress(redis.RedisError):
            return self._whole()
        return False

    def _whole(self) -> bool:
        return all(
            b"cluster_state:ok" in self._info(number) and b"cluster_known_nodes:3" in self._info(number)
            for number in range(3)
        )

    def _info(self, number: int) -> bytes:
        with redis.Redis(port=self.servers[number].port, socket_timeout=20, protocol=2) as client:
            client.response_callbacks.clear()
            answer = client.execute_command("CLUSTER INFO")
        return answer if isinstance(answer, bytes) else repr(answer).encode()

    def __enter__(self) -> Cluster:
        for number in range(3):
            self.start(number)
            begin, end = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
            self.on(number, "CLUSTER", "ADDSLOTSRANGE", begin, end)
        for number, options in enumerate(self._options[1:], 1):
            self.on(0, "CLUSTER", "MEET", "127.0.0.1", self.servers[number].port, int(options[3]))
        wait_for("the cluster", self.whole)
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.servers:
            one.kill()


class Watched:
    """A master and a replica with users, and three sentinels with a password; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, ExitStack()
        self.servers = []
        for number in range(2):
            (folder / f"server{number}").mkdir()
            self.servers.append(RedisServer(folder / f"server{number}"))
        self.sentinels = free_ports(3)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return (
            f"redis+sentinel://{USER}:p%40ss%3Aword@{hosts}/{MASTER}/0?sentinel_password={SENTINELS_PASSWORD}"
        )

    def on(self, number: int, *arguments: Any) -> Any:
        port = self.servers[number].port
        with redis.Redis(
            port=port, username=USER, password=PASSWORD, socket_timeout=20, protocol=2
        ) as client:
            return client.execute_command(*arguments)

    def of_sentinels(self, *arguments: Any) -> list[Any]:
        answers = []
        for port in self.sentinels:
            with redis.Redis(port=port, password=SENTINELS_PASSWORD, socket_timeout=20, protocol=2) as client:
                client.response_callbacks.clear()
                answers.append(client.execute_command(*arguments))
        return answers

    def master(self) -> int:
        """Its port, as all sentinels know it; 0 while they differ."""
        found = {int(answer[1]) for answer in self.of_sentinels("SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER)}
        return found.pop() if len(found) == 1 else 0

    def ready(self) -> bool:
        """They know of each other and of the replica: a failover has who agrees and who becomes master."""
        for answer in self.of_sentinels("SENTINEL MASTER", MASTER):
            facts = dict(zip(answer[::2], answer[1::2], strict=True))
            if facts[b"num-other-sentinels"] != b"2" or facts[b"num-slaves"] != b"1":
                return False
        return True

    def start(self, number: int) -> None:
        options = [*ACL, "--masteruser", USER, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0"]
        if number:
            options += ["--replicaof", "127.0.0.1", str(self.servers[0].port)]
        self.servers[number].start(*options)

    def __enter__(self) -> Watched:
        for number in range(2):
            self.start(number)
        binary = shutil.which("redis-server")
        assert binary is not None
        for port in self.sentinels:
            folder = self._folder / f"sentinel{port}"
            folder.mkdir()
            file = folder / "sentinel.conf"
            file.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\nrequirepass {SENTINELS_PASSWORD}\n"
                f"sentinel sentinel-pass {SENTINELS_PASSWORD}\n"
                f"sentinel monitor {MASTER} 127.0.0.1 {self.servers[0].port} 2\n"
                f"sentinel auth-user {MASTER} {USER}\nsentinel auth-pass {MASTER} {PASSWORD}\n"
                f"sentinel down-after-milliseconds {MASTER} 3000\nsentinel failover-timeout {MASTER} 10000\n"
            )
            process = Process([binary, str(file), "--sentinel"], Path(os.devnull))
            self._stack.callback(self._end, process)
            wait_for("a sentinel", lambda port=port: listens(port))  # type: ignore[misc]
        wait_for("the sentinels", self.ready, timeout_s=90)
        return self

    @staticmethod
    def _end(process: Process) -> None:
        process.kill()
        process.wait(STOP_S)

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for one in self.servers:
            one.kill()
