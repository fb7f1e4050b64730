r"""What the page is made of, beside the corpus: calls of the commands that are about connections, nodes and servers.

Words are cut as inline commands are.  Each group starts on an empty database and on new connections, and runs in
order; a connection that a call closed is opened again.  ``{id}`` stands for the connection's own id, ``{last}``
for the last bulk string that came back.  Two lines in one, ``A ;; B``, are sent together: what A leaves unanswered, B
ends.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.codec import split_inline
from tests.system.corpus import CORPUS

_GROUPS = {
    "hashes, streams, keys": r"""
        HSET h f v
        HPEXPIRE h 1000000 FIELDS 1 f
        HPTTL h FIELDS 2 f nothing
        HPTTL h FIELDS 5 f
        XADD s 1-1 f v
        XGROUP CREATE s g 0
        XREADGROUP GROUP g c STREAMS s >
        XINFO CONSUMERS s g
        XINFO CONSUMERS s nothing
        XINFO
        XGROUP
        SET k v
        OBJECT IDLETIME k
        OBJECT IDLETIME missing
        FUNCTION
        FUNCTION FLUSH
        FUNCTION DUMP
        FUNCTION DUMP x
        SCRIPT DEBUG NO
        SCRIPT DEBUG WRONG
        FUNCTION LOAD "#!lua name=one\nserver.register_function('f', function() return 1 end)"
        FUNCTION DUMP
        FUNCTION FLUSH
        FUNCTION RESTORE {last}
        FUNCTION RESTORE {last}
        FCALL f 0
        SCRIPT LOAD "return 'loaded'"
        SCRIPT SHOW {last}
        SCRIPT LOAD "return 7"
        EVALSHA {last} 0
        EVALSHA_RO {last} 0
        EVALSHA {last} 1 k
        DUMP k
        RESTORE restored 0 {last}
        RESTORE restored 0 {last}
        RESTORE-ASKING {k}asking 0 {last}
        GET restored
        MOVE restored 1
        MOVE restored 1
        GEOADD geo 13.361389 38.115556 Palermo
        GEORADIUSBYMEMBER_RO geo Palermo 200 km
        PFADD hll a
        PFDEBUG ENCODING hll
        CONFIG SET maxmemory-policy allkeys-lfu
        SET often v
        OBJECT FREQ often
        CONFIG SET maxmemory-policy noeviction
        OBJECT FREQ often
        FLUSHALL
        RANDOMKEY
        SET only v
        RANDOMKEY
        CONFIG SET latency-monitor-threshold 1
        EVAL "local n = 0 for i = 1, 2000000 do n = n + i end return n" 1 k
        LATENCY GRAPH command
        LATENCY HISTORY command
        LATENCY LATEST
        CONFIG SET latency-monitor-threshold 0
        LATENCY RESET
        MIGRATE 127.0.0.1 1 "" 0 100 KEYS missing
        MIGRATE 127.0.0.1 1
    """,
    "blocking, with something there": r"""
        RPUSH {l}1 a b c d e f g h
        BLPOP {l}1 0
        BLPOP {l}missing {l}1 0
        BRPOP {l}1 0
        BLMOVE {l}1 {l}2 LEFT RIGHT 0
        BRPOPLPUSH {l}1 {l}2 0
        BLMPOP 0 2 {l}missing {l}1 LEFT COUNT 2
        LRANGE {l}1 0 -1
        ZADD {z}1 1 a 2 b 3 c 4 d
        BZPOPMIN {z}1 0
        BZPOPMAX {z}missing {z}1 0
        BZMPOP 0 1 {z}1 MIN COUNT 2
        XADD s 1-1 f v
        XREAD BLOCK 0 STREAMS s 0
        XGROUP CREATE s g 0
        XREADGROUP GROUP g c BLOCK 0 STREAMS s >
    """,
    "blocking, with nothing there": r"""
        BLPOP l 0.01
        BRPOP l 0.01
        BLMOVE {l}1 {l}2 LEFT RIGHT 0.01
        BRPOPLPUSH {l}1 {l}2 0.01
        BLMPOP 0.01 1 l LEFT
        BZPOPMIN z 0.01
        BZPOPMAX z 0.01
        BZMPOP 0.01 1 z MAX
        XADD s 1-1 f v
        XREAD BLOCK 10 STREAMS s $
        XGROUP CREATE s g $
        XREADGROUP GROUP g c BLOCK 10 STREAMS s >
        SET string x
        BLPOP string 0.01
        BLPOP l -1
        BLPOP l abc
        BLPOP l
        BRPOP l abc
        BLMOVE {l}1 {l}2 LEFT WRONG 0.01
        BRPOPLPUSH {l}1 {l}2 abc
        BLMPOP 0.01 0 l LEFT
        BZPOPMIN string 0.01
        BZPOPMAX z abc
        BZMPOP 0.01 1 z WRONG
        XREAD BLOCK abc STREAMS s $
        XREADGROUP GROUP nobody c BLOCK 10 STREAMS s >
    """,
    "transactions": r"""
        MULTI
        SET k 1
        INCR k
        GET k
        EXEC
        MULTI
        MULTI
        DISCARD
        DISCARD
        EXEC
        MULTI
        GET
        EXEC
        MULTI
        LPUSH k x
        INCR k
        EXEC
        WATCH k
        UNWATCH
        WATCH k {k}2
        SET k 5
        MULTI
        GET k
        EXEC
        WATCH k
        MULTI
        WATCH k
        GET k
        EXEC
        WATCH
        MULTI
        PING
        ECHO hello
        SELECT 0
        EXEC
        MULTI
        BLPOP missing 0
        EXEC
    """,
    "connection": r"""
        PING
        ECHO hello
        AUTH wrong
        AUTH nobody wrong
        AUTH default anything
        AUTH
        AUTH a b c
        HELLO 2 SETNAME me
        CLIENT GETNAME
        HELLO 4
        HELLO abc
        HELLO 2 WRONG
        HELLO 2 AUTH nobody wrong
        HELLO
        SELECT 1
        SELECT 0
        RESET
        RESET x
        CLIENT GETNAME
        CLIENT SETNAME name
        CLIENT SETNAME "a name"
        CLIENT GETNAME
        CLIENT SETINFO LIB-NAME library
        CLIENT SETINFO LIB-VER 1.0
        CLIENT SETINFO WRONG x
        CLIENT ID
        CLIENT INFO
        CLIENT LIST ID {id}
        CLIENT LIST TYPE replica
        CLIENT LIST TYPE WRONG
        CLIENT GETREDIR
        CLIENT NO-EVICT ON
        CLIENT NO-EVICT OFF
        CLIENT NO-EVICT WRONG
        CLIENT NO-TOUCH ON
        CLIENT NO-TOUCH OFF
        CLIENT NO-TOUCH WRONG
        CLIENT CAPA redirect
        CLIENT CAPA
        CLIENT IMPORT-SOURCE OFF
        CLIENT IMPORT-SOURCE WRONG
        CLIENT TRACKINGINFO
        CLIENT TRACKING OFF
        CLIENT TRACKING WRONG
        CLIENT CACHING YES
        CLIENT CACHING WRONG
        CLIENT UNBLOCK 9007199254740991
        CLIENT UNBLOCK abc
        CLIENT UNBLOCK 1 WRONG
        CLIENT PAUSE 1
        CLIENT UNPAUSE
        CLIENT PAUSE 1 WRITE
        CLIENT PAUSE abc
        CLIENT PAUSE 1 WRONG
        CLIENT UNPAUSE
        CLIENT UNPAUSE x
        CLIENT KILL ID 9007199254740991
        CLIENT KILL 127.0.0.1:1
        CLIENT KILL ADDR 127.0.0.1:1
        CLIENT KILL TYPE WRONG
        CLIENT KILL
        CLIENT KILL ID {id} SKIPME no
        CLIENT REPLY ON
        CLIENT REPLY WRONG
        CLIENT REPLY SKIP ;; PING
        CLIENT REPLY OFF ;; CLIENT REPLY ON
        CLIENT HELP
        CLIENT
        QUIT
    """,
    "tracking": r"""
        HELLO 3
        CLIENT TRACKING ON
        CLIENT TRACKINGINFO
        CLIENT CACHING YES
        CLIENT GETREDIR
        SET k v
        GET k
        CLIENT TRACKING OFF
        CLIENT TRACKING ON OPTIN
        CLIENT CACHING YES
        CLIENT TRACKING ON BCAST
        CLIENT TRACKING OFF
        CLIENT TRACKING ON BCAST PREFIX user:
        CLIENT TRACKINGINFO
        CLIENT TRACKING ON REDIRECT 9007199254740991
    """,
    "pub/sub": r"""
        PUBLISH channel message
        PUBLISH channel
        SPUBLISH channel message
        PUBSUB CHANNELS
        PUBSUB CHANNELS pattern
        PUBSUB NUMPAT
        PUBSUB NUMSUB a b
        PUBSUB SHARDCHANNELS
        PUBSUB SHARDNUMSUB a
        PUBSUB HELP
        PUBSUB
        PUBSUB NUMPAT x
        UNSUBSCRIBE
        PUNSUBSCRIBE
        SUNSUBSCRIBE
        SUBSCRIBE a
        SUBSCRIBE b c a
        PSUBSCRIBE p*
        SUBSCRIBE
        PSUBSCRIBE
        SSUBSCRIBE
        UNSUBSCRIBE a
        UNSUBSCRIBE b nothing
        UNSUBSCRIBE
        PUNSUBSCRIBE p*
        PUNSUBSCRIBE
        SSUBSCRIBE {s}a
        SSUBSCRIBE {s}b {s}c
        SUNSUBSCRIBE {s}a
        SUNSUBSCRIBE
        SSUBSCRIBE a b
        SUNSUBSCRIBE b a
        PUBSUB NUMPAT
    """,
    "pub/sub and what a subscriber may send": r"""
        SUBSCRIBE a
        PING
        PING hello
        GET k
        RESET
        GET k
        SUBSCRIBE a
        QUIT
    """,
    "users": r"""
        ACL WHOAMI
        ACL LIST
        ACL USERS
        ACL GETUSER default
        ACL GETUSER nobody
        ACL SETUSER ada on >lovelace ~user:* &news +get +set
        ACL GETUSER ada
        ACL USERS
        ACL LIST
        ACL SETUSER ada WRONG
        ACL SETUSER
        ACL DRYRUN ada GET user:1
        ACL DRYRUN ada GET other
        ACL DRYRUN ada DEL user:1
        ACL DRYRUN nobody GET user:1
        ACL DELUSER ada nobody
        ACL DELUSER default
        ACL DRYRUN ada GET user:1
        ACL GENPASS
        ACL GENPASS 5
        ACL GENPASS abc
        ACL CAT
        ACL CAT dangerous
        ACL LOG RESET
        ACL LOG
        ACL LOG 1
        ACL LOG WRONG
        ACL LOAD
        ACL SAVE
        ACL HELP
        ACL
        ACL WRONG
    """,
    "server": r"""
        INFO server
        INFO
        INFO nothing
        CONFIG GET maxmemory
        CONFIG SET slowlog-max-len 128
        CONFIG SET slowlog-max-len abc
        CONFIG SET nothing 1
        CONFIG SET
        CONFIG REWRITE
        CONFIG RESETSTAT
        LASTSAVE
        LASTSAVE x
        ROLE
        ROLE x
        SWAPDB 0 0
        SWAPDB 0 1
        SWAPDB a b
        COMMANDLOG RESET slow
        COMMANDLOG RESET wrong
        COMMANDLOG LEN slow
        COMMANDLOG GET 10 large-reply
        COMMANDLOG HELP
        COMMANDLOG
        SLOWLOG
        SLOWLOG GET 0
        LATENCY
        LATENCY DOCTOR
        LATENCY HISTOGRAM nothing
        LATENCY HISTOGRAM ping
        LATENCY LATEST
        MEMORY DOCTOR
        MEMORY MALLOC-STATS
        MEMORY STATS
        MEMORY STATS x
        MODULE
        MODULE LIST
        MODULE HELP
        MODULE LOAD /nowhere
        MODULE LOADEX /nowhere
        MODULE UNLOAD nothing
        BGSAVE WRONG
        BGREWRITEAOF x
        SAVE x
        DEBUG
        DEBUG SLEEP 0
        DEBUG WRONG
        FAILOVER ABORT
        FAILOVER WRONG
        REPLICAOF NO ONE
        REPLICAOF a
        SLAVEOF NO ONE
        SHUTDOWN ABORT
        SHUTDOWN WRONG
        REPLCONF listening-port 1
        RESTORE-ASKING k
        PFSELFTEST
        PFSELFTEST x
        WAIT 0 0
        WAITAOF 0 0 0
    """,
    "to disk": r"""
        SAVE
        BGSAVE
        BGREWRITEAOF
    """,
    "watching": r"""
        MONITOR x
        MONITOR
    """,
    "cluster": r"""
        CLUSTER KEYSLOT key
        CLUSTER KEYSLOT
        CLUSTER INFO
        CLUSTER NODES
        CLUSTER SLOTS
        CLUSTER SHARDS
        CLUSTER LINKS
        CLUSTER MYID
        CLUSTER MYSHARDID
        CLUSTER COUNTKEYSINSLOT 0
        CLUSTER GETKEYSINSLOT 0 10
        CLUSTER COUNT-FAILURE-REPORTS ffffffffffffffffffffffffffffffffffffffff
        CLUSTER REPLICAS ffffffffffffffffffffffffffffffffffffffff
        CLUSTER SLAVES ffffffffffffffffffffffffffffffffffffffff
        CLUSTER SLOT-STATS SLOTSRANGE 0 1
        CLUSTER GETSLOTMIGRATIONS
        CLUSTER HELP
        CLUSTER
        CLUSTER WRONG
        CLUSTER ADDSLOTS abc
        CLUSTER ADDSLOTSRANGE a b
        CLUSTER BUMPEPOCH
        CLUSTER CANCELSLOTMIGRATIONS
        CLUSTER DELSLOTS abc
        CLUSTER DELSLOTSRANGE a b
        CLUSTER FAILOVER
        CLUSTER FLUSHSLOT abc
        CLUSTER FLUSHSLOTS x
        CLUSTER FORGET ffffffffffffffffffffffffffffffffffffffff
        CLUSTER MEET a b
        CLUSTER MIGRATESLOTS a b
        CLUSTER REPLICATE ffffffffffffffffffffffffffffffffffffffff
        CLUSTER RESET WRONG
        CLUSTER SAVECONFIG
        CLUSTER SET-CONFIG-EPOCH abc
        CLUSTER SETSLOT abc STABLE
        CLUSTER SYNCSLOTS a b
        CLUSTERSCAN 0
        CLUSTERSCAN abc
        ASKING
        ASKING x
        READONLY
        READONLY x
        READWRITE
    """,
}

PROXY_ALONE = r"""
    SYNC
    PSYNC ? -1
"""
"""A plain server answers these with its whole data set: only the proxy is asked."""

TOGETHER = b";;"


def _parse(text: str) -> Iterator[list[bytes]]:
    for line in text.splitlines():
        if line.strip():
            yield split_inline(line.strip().encode())


CALLS: dict[str, list[list[bytes]]] = {
    **{f"corpus: {group}": calls for group, calls in CORPUS.items()},
    **{group: list(_parse(text)) for group, text in _GROUPS.items()},
}
"""Group -> its calls, each a list of words."""
ALONE: list[list[bytes]] = list(_parse(PROXY_ALONE))
