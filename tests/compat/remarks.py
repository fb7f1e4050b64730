"""What a reader of the page should know of single commands: short, and only what the figures do not say."""

from __future__ import annotations

CLUSTER = "a server that knows nothing of clusters: that is what clients are to take the proxy for"
BREAKS = "it could break the cluster behind the proxy"

DIFFERENT: dict[str, str] = {
    "client info": "without `tot-net-in`, `tot-net-out` and `tot-cmds`, which the proxy does not count",
    "client list": "as CLIENT INFO",
    "cluster help": "the engine's help, where a plain server has none",
    "cluster slot-stats": "answered, of every primary: it is of use and does no harm",
    "config rewrite": "every node rewrites its file; the plain server of the tests has none",
    "swapdb": "as in any cluster",
}
"""Why replies are not the same: without an entry here the test fails."""

PROGRAMS: dict[str, str] = {
    "redis-py, valkey-py": "in plain, pipelined and asyncio use, Lock, client-side caching: as they are",
    "node-redis, ioredis": "pub/sub, blocking, streams with groups, scripts, transactions, pools, caching: as they are",
    "Celery": "tasks, groups, chords, retries, results, with `global_keyprefix: '{celery}'` in "
    "`broker_transport_options` and `result_backend_transport_options`",
    "Dramatiq": "with `RedisBroker(namespace='{dramatiq}')`",
    "Django Channels": "`RedisPubSubChannelLayer` as it is; not `RedisChannelLayer`, whose scripts do not name keys",
    "RQ": "no: its transactions span slots and its keys cannot be tagged, as on any cluster",
}
"""What tests/system/test_clients.py and tests/compat/test_programs.py run."""

RUNS_ON: dict[str, str] = {
    **dict.fromkeys(("subscribe", "psubscribe", "unsubscribe", "punsubscribe"), "the proxy"),
    **dict.fromkeys(("ssubscribe", "sunsubscribe"), "the proxy"),
    **dict.fromkeys(("multi", "exec", "discard", "watch", "unwatch"), "shard of its keys"),
    **dict.fromkeys(("wait", "waitaof"), "the proxy"),
}
"""Where the nodes' statistics would mislead: what the proxy sends them at its own time."""

REMARKS: dict[str, str] = {
    "wait": "the least of every shard written to; [see](README.md#what-an-acknowledgment-means-here)",
    "waitaof": "the least of every shard written to; [see](README.md#what-an-acknowledgment-means-here)",
    "mget": "joined in the order asked for; not one moment, since each shard answers for itself",
    "mset": "not atomic over shards",
    "msetex": "not atomic over shards; with a condition (NX, XX) the keys share a slot",
    "del": "not atomic over shards",
    "unlink": "not atomic over shards",
    "keys": "of all shards",
    "dbsize": "the sum",
    "randomkey": "a shard drawn by its share of the keys, then a key of it",
    "flushall": "one shard after another may be seen empty",
    "info": "the cluster as one server: sums, and sections of the proxy's own",
    "scan": "all keys of all shards, through slots that move as well",
    "eval": "a script without keys runs on one shard, always the same",
    "evalsha": "a script that a shard has forgotten is loaded there again",
    "publish": "to the subscribers of every proxy",
    "subscribe": "few connections to the nodes serve all subscribers",
    "psubscribe": "few connections to the nodes serve all subscribers",
    "multi": "keys of one slot, as in any cluster",
    "watch": "keys of one slot, as in any cluster",
    "hello": "says `standalone`, which is what clients are to believe",
    "role": "says master: which node is what, `ackgate status` tells",
    "select": "0 to 15 where the cluster has several databases",
    "client list": "the clients of this proxy",
    "client kill": "the clients of this proxy",
    "client id": "unique over all proxies",
    "monitor": "what the clients of this proxy send; not what scripts call",
    "lastsave": "of one node",
    "slowlog get": "of all nodes",
    "commandlog get": "of all nodes",
    "memory doctor": "each primary's, under its name",
    "memory malloc-stats": "each primary's, under its name",
    "latency doctor": "each node's, under its name",
    "latency graph": "each node's, under its name",
    "latency histogram": "of all nodes",
    "ssubscribe": "of any slots in one call, as on a plain server",
    "client tracking": "invalidations from every shard",
}
