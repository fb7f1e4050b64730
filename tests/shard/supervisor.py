"""A program for the tests to run and kill: a supervised cluster in a process of its own.

``supervisor.py DIR SETTINGS_JSON`` prints one line of JSON when the cluster is ready and runs until SIGTERM.
"""

import json
import signal
import sys

import msgspec
import trio

from shard.settings import ClusterSettings
from shard.supervise import running


async def main(directory: str, settings: str) -> None:
    wanted = msgspec.json.decode(settings, type=ClusterSettings)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:  # first: whoever reads the line may send one at once
        async with running(directory, wanted) as cluster:
            nodes = [{"host": node.host, "port": node.port, "pid": node.pid} for node in cluster.nodes]
            print(json.dumps(nodes), flush=True)
            async for _ in signals:
                return


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
