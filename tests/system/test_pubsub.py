"""Subscriptions: the same as at one server, though the nodes are many and each subscription there is shared."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from proxy.codec import key_slot
from proxy.codec.reply import decode
from proxy.routing.glob import glob
from tests.harness import Up, until
from tests.system.beside import everybody, moved, node, node_wire, on, primaries, proxy_beside, whole
from tests.system.nodes import configured, metric
from tests.system.wire import Wire, request

NOT_IN_SUBSCRIBER_MODE = (
    b"-ERR Can't execute '%s': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET "
    b"are allowed in this context\r\n"
)
Words = tuple[str | bytes | int, ...]


class Talk(Wire):
    """A connection of one protocol, that tells all it is sent on account of a command."""

    protocol = 2

    def speak(self, protocol: int) -> Talk:
        self.protocol = protocol
        if protocol == 3:
            assert self.call("HELLO", 3).startswith(b"%")
        return self

    def said(self, *words: str | bytes | int) -> list[bytes]:
        """Everything up to the reply of the PING sent behind it."""
        self.send_raw(b"".join(request(*each) for each in (words, ("PING", "=behind="))))
        frames = [self.receive()]
        while b"=behind=" not in frames[-1]:
            frames.append(self.receive())
        return frames[:-1]


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def connect(endpoint: Up) -> Iterator[Callable[..., Talk]]:
    """Connects to the proxy, or to ``port``; in the end nothing is subscribed any more."""
    with ExitStack() as stack:

        def connected(protocol: int = 2, port: int | None = None) -> Talk:
            talk = Talk.to(endpoint.redis_url) if port is None else Talk("127.0.0.1", port)
            return stack.enter_context(talk).speak(protocol)

        yield connected
    until(lambda: metric(endpoint, "ackgate_shared_subscriptions") == 0, "nothing is subscribed")


CONVERSATION: list[Words] = [
    ("SUBSCRIBE", "a", "b"),
    ("SUBSCRIBE", "a"),
    ("PSUBSCRIBE", "p*"),
    ("SSUBSCRIBE", "s"),
    ("PING",),
    ("PING", "x"),
    ("PING", "x", "y"),
    ("GET", "a"),
    ("get",),
    ("nosuch",),
    ("CLIENT", "GETNAME"),
    ("UNSUBSCRIBE", "zz"),
    ("UNSUBSCRIBE", "a", "b"),
    ("PUNSUBSCRIBE",),
    ("SUNSUBSCRIBE",),
    ("UNSUBSCRIBE",),
    ("PUNSUBSCRIBE",),
    ("SUNSUBSCRIBE",),
    ("UNSUBSCRIBE", "q", "r"),
    ("GET", "a"),
    ("SUBSCRIBE", "a", "a"),
    ("UNSUBSCRIBE", "a", "a"),
    ("PSUBSCRIBE", "p", "p"),
    ("SSUBSCRIBE", "s", "t", "u"),  # of several slots
    ("SUNSUBSCRIBE", "s", "t", "u"),
    ("PUNSUBSCRIBE", "p"),
    ("SUBSCRIBE",),
    ("PSUBSCRIBE",),
    ("SSUBSCRIBE",),
    ("SUBSCRIBE", "", b"\x00\r\n"),
    ("PSUBSCRIBE", ""),
    ("UNSUBSCRIBE", "", b"\x00\r\n"),
    ("PUNSUBSCRIBE", ""),
    ("PUBSUB",),
    ("PUBSUB", "X"),
    ("PUBSUB", "CHANNELS", "a", "b"),
    ("PUBSUB", "NUMSUB"),
    ("PUBSUB", "HELP"),
    ("SUBSCRIBE", "a"),
    ("RESET",),
    ("PING",),
]


def test_a_conversation_goes_as_with_one_server(connect: Callable[..., Talk], direct: int, protocol: int) -> None:
    one, other = connect(protocol), connect(protocol, direct)
    assert one.said("FLUSHALL") == other.said("FLUSHALL")
    for words in CONVERSATION:
        assert (words, one.said(*words)) == (words, other.said(*words))


def test_a_subscriber_of_resp2_may_send_little_else(connect: Callable[..., Talk], direct: int) -> None:
    for port in (None, direct):
        talk = connect(2, port)
        talk.said("SUBSCRIBE", "a")
        for name in ("hello", "multi", "publish", "info", "watch", "blpop", "wait", "client|info"):
            words = [*name.split("|"), "1", "1"][:3] if name != "client|info" else ["CLIENT", "INFO"]
            words = words[:1] if name in ("multi", "info") else words
            assert talk.said(*words) == [NOT_IN_SUBSCRIBER_MODE % name.encode()], words
        assert talk.said("EXEC")[0].startswith(b"-EXECABORT Transaction discarded because of: Can't execute 'exec'")
        assert talk.call("QUIT") == b"+OK\r\n"
        assert talk.at_eof()


def test_resp3_leaves_subscriber_mode_and_comes_back_to_it(connect: Callable[..., Talk], direct: int) -> None:
    for port in (None, direct):
        talk = connect(3, port)
        talk.said("SUBSCRIBE", "a")
        assert talk.said("GET", "nokey") == [b"_\r\n"]
        assert talk.said("HELLO", 2)[0].startswith(b"*")
        assert talk.said("GET", "nokey") == [NOT_IN_SUBSCRIBER_MODE % b"get"]
        connect(2, port).call("PUBLISH", "a", "m")
        assert talk.receive() == b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nm\r\n"
        assert talk.said("UNSUBSCRIBE") == [b"*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n"]
        assert talk.said("GET", "nokey") == [b"$-1\r\n"]


def test_a_message_comes_once_for_each_subscription_it_matches(
    connect: Callable[..., Talk], direct: int, protocol: int
) -> None:
    came = []
    for port in (None, direct):
        talk, publisher = connect(protocol, port), connect(2, port)
        talk.said("PSUBSCRIBE", "f*", "*o", "b*")
        talk.said("SUBSCRIBE", "foo")
        talk.said("SSUBSCRIBE", "foo")
        counts = [publisher.call("PUBLISH", channel, "m") for channel in ("foo", "fa", "o", "x", "foo")]
        messages = sorted(talk.receive() for _ in range(8))  # among patterns the engine has no order
        came.append((counts, messages, publisher.call("SPUBLISH", "foo", "s"), talk.receive()))
    assert came[0] == came[1]


def test_whoever_publishes_wherever_is_heard_from_the_confirmation_on(
    endpoint: Up, connect: Callable[..., Talk]
) -> None:
    talks = [connect(2), connect(3)]
    for number, address in enumerate(everybody(endpoint)):
        for talk in talks:
            talk.said("SUBSCRIBE", f"from{number}")
        on([address], "PUBLISH", f"from{number}", "m")
        for talk in talks:
            assert decode(talk.receive()) == [b"message", b"from%d" % number, b"m"]


@pytest.mark.parametrize(
    ("publish", "subscribe", "name"),
    [("PUBLISH", "SUBSCRIBE", "a"), ("PUBLISH", "PSUBSCRIBE", "*"), ("SPUBLISH", "SSUBSCRIBE", "a")],
)
def test_what_was_published_before_is_not_heard(
    connect: Callable[..., Talk], publish: str, subscribe: str, name: str
) -> None:
    connect(2).said(subscribe, name)  # so that the proxy hears it already
    talk = connect(2)
    for number in range(100):
        heard = talk.pipeline([[publish, "a", number], [subscribe, name], ["PING"], [f"{subscribe[:-9]}UNSUBSCRIBE"]])
        assert [b"message" in frame for frame in heard] == [False] * 4


def test_messages_of_a_channel_keep_their_order(connect: Callable[..., Talk], protocol: int) -> None:
    listeners = [connect(protocol) for _ in range(3)]
    for listener in listeners:
        listener.said("SUBSCRIBE", "order")
    publisher = connect()
    messages = [b"%d" % number for number in range(5000)]
    for at in range(0, len(messages), 100):
        publisher.pipeline([["PUBLISH", "order", message] for message in messages[at : at + 100]])
    for listener in listeners:
        assert [decode(listener.receive())[2] for _ in messages] == messages


def test_a_large_message_comes_whole(connect: Callable[..., Talk], protocol: int) -> None:
    listener, publisher = connect(protocol), connect()
    listener.said("SUBSCRIBE", "large")
    value = os.urandom(3 << 20)
    assert publisher.call("PUBLISH", "large", value) == b":1\r\n"
    assert publisher.call("PUBLISH", "large", "small") == b":1\r\n"
    assert decode(listener.receive())[2] == value
    assert decode(listener.receive())[2] == b"small"


def test_a_session_of_resp3_hears_itself_behind_the_reply(connect: Callable[..., Talk], direct: int) -> None:
    came = []
    for port in (None, direct):
        talk = connect(3, port)
        talk.said("SUBSCRIBE", "a")
        talk.said("SSUBSCRIBE", "a")
        frames = []
        for words in (("PUBLISH", "a", "one"), ("SPUBLISH", "a", "two")):
            talk.send(*words)
            frames += [talk.receive(), talk.receive()]
        frames += [talk.call("MULTI"), talk.call("PING", "x"), talk.call("PUBLISH", "a", "three")]
        talk.send("EXEC")
        frames += sorted([talk.receive(), talk.receive()])
        came.append(frames)
    assert came[0] == came[1]


def test_replies_that_are_switched_off_are_not_those_of_subscriptions(
    connect: Callable[..., Talk], direct: int, protocol: int
) -> None:
    came = []
    for port in (None, direct):
        talk = connect(protocol, port)
        talk.send("CLIENT", "REPLY", "OFF")
        talk.send("SUBSCRIBE", "a")
        frames = [talk.receive()]
        connect(2, port).call("PUBLISH", "a", "m")
        frames.append(talk.receive())
        talk.send("PING")
        talk.send("UNSUBSCRIBE")
        frames.append(talk.receive())
        talk.send("CLIENT", "REPLY", "ON")
        frames.append(talk.receive())
        came.append(frames)
    assert came[0] == came[1]


def test_a_shard_channel_is_heard_whichever_shard_has_it(endpoint: Up, connect: Callable[..., Talk]) -> None:
    names = [f"channel{number}" for number in range(12)]
    talks = [connect(2), connect(3)]
    for talk in talks:
        talk.said("SSUBSCRIBE", *names)
        talk.said("SUBSCRIBE", *names)
    publisher = connect()
    for name in names:
        assert publisher.call("SPUBLISH", name, "m") == b":2\r\n"
        for talk in talks:
            assert decode(talk.receive()) == [b"smessage", name.encode(), b"m"]
    shards = {key_slot(name.encode()) * 3 // 16384 for name in names}
    assert len(shards) == 3


def test_the_counts_are_those_of_clients_wherever_they_are(endpoint: Up, connect: Callable[..., Talk]) -> None:
    mine = [connect(2), connect(3), connect(2)]
    for talk in mine[:2]:
        talk.said("SUBSCRIBE", "both", "own")
    mine[2].said("PSUBSCRIBE", "b*", "o*")
    for talk in mine[1:]:
        talk.said("SSUBSCRIBE", "both")
    with ExitStack() as stack:
        owner = _owner(endpoint, "both")
        strangers = [stack.enter_context(node_wire(address)) for address in everybody(endpoint)]
        for stranger in strangers:
            stranger.call("SUBSCRIBE", "both")
        strangers[0].call("PSUBSCRIBE", "theirs*")
        at_owner = stack.enter_context(node_wire(owner))
        at_owner.call("SSUBSCRIBE", "both")
        asker = connect()
        assert sorted(decode(asker.call("PUBSUB", "CHANNELS"))) == [b"both", b"own"]
        assert decode(asker.call("PUBSUB", "CHANNELS", "b*")) == [b"both"]
        assert decode(asker.call("PUBSUB", "SHARDCHANNELS")) == [b"both"]
        assert decode(asker.call("PUBSUB", "NUMSUB", "own", "both", "x")) == [b"own", 2, b"both", 8, b"x", 0]
        assert decode(asker.call("PUBSUB", "SHARDNUMSUB", "both", "x")) == [b"both", 3, b"x", 0]
        assert asker.call("PUBSUB", "NUMPAT") == b":3\r\n"
        assert asker.call("PUBLISH", "both", "m") == b":4\r\n"  # of the strangers, the one at the same node
        assert asker.call("PUBLISH", "own", "m") == b":3\r\n"
        assert asker.call("SPUBLISH", "both", "m") == b":3\r\n"
    for talk in mine:
        talk.close()
    until(lambda: decode(asker.call("PUBSUB", "CHANNELS")) == [], "they are gone")
    assert decode(asker.call("PUBSUB", "NUMSUB", "own", "both")) == [b"own", 0, b"both", 0]


def test_nothing_stays_subscribed_that_nobody_wants(endpoint: Up, connect: Callable[..., Talk]) -> None:
    talks = [connect(2), connect(3), connect(2), connect(3)]
    for talk in talks:
        talk.said("SUBSCRIBE", "shared", "other")
        talk.said("PSUBSCRIBE", "sh*")
        talk.said("SSUBSCRIBE", "shared")
    counts = on(everybody(endpoint), "PUBSUB", "NUMSUB", "shared")
    assert sum(decode(each)[1] for each in counts) == 1  # four clients, one subscription
    talks[0].said("UNSUBSCRIBE")
    talks[0].said("PUNSUBSCRIBE")
    talks[0].said("SUNSUBSCRIBE")
    talks[1].said("RESET")
    talks[2].close()
    assert sum(decode(each)[1] for each in on(everybody(endpoint), "PUBSUB", "NUMSUB", "shared")) == 1
    talks[3].close()
    for words in (("CHANNELS",), ("SHARDCHANNELS",)):
        until(lambda w=words: set(on(everybody(endpoint), "PUBSUB", *w)) == {b"*0\r\n"}, "nothing is subscribed")
    assert set(on(everybody(endpoint), "PUBSUB", "NUMPAT")) == {b":0\r\n"}


def test_subscribing_and_leaving_in_quick_turns_ends_as_the_last_word_says(connect: Callable[..., Talk]) -> None:
    talk, publisher = connect(3), connect()
    for kind, message in (("", "message"), ("P", "pmessage"), ("S", "smessage")):
        for _ in range(50):
            talk.send_raw(b"".join(request(f"{kind}{word}", "c") for word in ("SUBSCRIBE", "UNSUBSCRIBE")))
        talk.send(f"{kind}SUBSCRIBE", "c")
        frames = [decode(talk.receive()) for _ in range(101)]
        assert [frame[2] for frame in frames] == [1, 0] * 50 + [1]
        publisher.call("SPUBLISH" if kind == "S" else "PUBLISH", "c", "m")
        assert decode(talk.receive())[0] == message.encode()
        talk.said(f"{kind}UNSUBSCRIBE", "c")


def test_notifications_of_every_shard_come_once_and_ordinary_messages_too(
    endpoint: Up, connect: Callable[..., Talk], protocol: int
) -> None:
    keys = [f"key{number}" for number in range(9)]
    with _set_everywhere(endpoint, "notify-keyspace-events", "KEA"):
        talk = connect(protocol)
        talk.said("PSUBSCRIBE", "*")
        talk.said("PSUBSCRIBE", "__keyspace@0__:key*")
        talk.said("SUBSCRIBE", "__keyevent@0__:set")
        writer = connect()
        for key in keys:
            writer.call("SET", key, "v")
            came = sorted(_words(talk.receive()) for _ in range(4))
            space, event = b"__keyspace@0__:" + key.encode(), b"__keyevent@0__:set"
            assert came == [
                [b"message", event, key.encode()],
                [b"pmessage", b"*", event, key.encode()],
                [b"pmessage", b"*", space, b"set"],
                [b"pmessage", b"__keyspace@0__:key*", space, b"set"],
            ]
        assert writer.call("PUBLISH", "news", "m") == b":1\r\n"
        assert _words(talk.receive()) == [b"pmessage", b"*", b"news", b"m"]
        writer.call("DEL", keys[0])
        assert _words(talk.receive())[2] != b"news"  # no second copy came before what followed
        for key in keys:
            writer.call("DEL", key)


def test_channels_of_the_proxies_are_closed_to_clients(endpoint: Up, connect: Callable[..., Talk]) -> None:
    talk = connect()
    for words in (("SUBSCRIBE", "a", "__ackgate__x"), ("PSUBSCRIBE", "__ackgate__*"), ("SSUBSCRIBE", "__ackgate__")):
        assert b"are reserved for the proxies" in talk.call(*words)
    for words in (("PUBLISH", "__ackgate__x", "m"), ("SPUBLISH", "__ackgate__x", "m")):
        assert b"are reserved for the proxies" in talk.call(*words)
    talk.said("PSUBSCRIBE", "*", "__ackgat?__*")
    home = [address for address in primaries(endpoint) if on([address], "PUBSUB", "NUMPAT") != [b":0\r\n"]]
    assert home
    for address in home:
        on([address], "PUBLISH", "__ackgate__x", "secret")
        on([address], "PUBLISH", "open", "m")
        assert _words(talk.receive()) == [b"pmessage", b"*", b"open", b"m"]
    with node_wire(home[0]) as peer:
        peer.call("SUBSCRIBE", "__ackgate__x")
        assert b"__ackgate__" not in connect().call("PUBSUB", "CHANNELS")


def test_a_client_is_shown_with_what_it_has_subscribed(connect: Callable[..., Talk]) -> None:
    talk, asker = connect(3), connect(2)
    talk.said("SUBSCRIBE", "a")
    talk.said("PSUBSCRIBE", "a*", "b*")
    talk.said("SSUBSCRIBE", "s")
    info = talk.said("CLIENT", "INFO")[0]
    assert b" flags=P " in info
    assert b" sub=1 psub=2 ssub=1 " in info
    figures = asker.call("INFO", "stats")
    assert b"pubsub_channels:1\r\npubsub_patterns:2\r\npubsubshard_channels:1\r\n" in figures
    listed = asker.call("CLIENT", "LIST", "TYPE", "pubsub")
    assert re.findall(rb"\bid=(\d+) ", listed) == re.findall(rb"\bid=(\d+) ", info)
    talk.said("RESET")
    assert b" sub=0 psub=0 ssub=0 " in talk.said("CLIENT", "INFO")[0]


@pytest.mark.parametrize("kind", ["", "S"])
def test_a_lost_connection_to_a_node_is_made_good(endpoint: Up, connect: Callable[..., Talk], kind: str) -> None:
    talk, publisher = connect(), connect()
    talk.said(f"{kind}SUBSCRIBE", "c")
    for address in primaries(endpoint):
        on([address], "CLIENT", "KILL", "TYPE", "pubsub")
    received = _heard_again(talk, publisher, f"{kind}PUBLISH")
    assert received == sorted(received)
    assert publisher.call(f"{kind}PUBLISH", "c", "last") == b":1\r\n"


def test_a_shard_channel_is_followed_to_another_shard(endpoint: Up, connect: Callable[..., Talk]) -> None:
    talks, publisher = [connect(2), connect(3)], connect()
    for talk in talks:
        talk.said("SSUBSCRIBE", "wanders")
    publisher.call("SET", "{wanders}key", "v")
    with moved(endpoint, "{wanders}key") as (_, target):
        for talk in talks:
            _heard_again(talk, publisher, "SPUBLISH", "wanders")
        assert decode(on([target], "PUBSUB", "SHARDNUMSUB", "wanders")[0]) == [b"wanders", 1]
        assert talks[1].said("SUNSUBSCRIBE") == [b">3\r\n$12\r\nsunsubscribe\r\n$7\r\nwanders\r\n:0\r\n"]
    _heard_again(talks[0], publisher, "SPUBLISH", "wanders")
    publisher.call("DEL", "{wanders}key")


def test_a_failover_leaves_a_gap_and_no_more(tmp_path: Path) -> None:
    with ExitStack() as stack:
        running = stack.enter_context(configured(tmp_path, "cluster: {node_timeout_ms: 1000}"))
        with Talk.to(running.redis_url) as talk, Talk.to(running.redis_url) as publisher:
            talk.said("SUBSCRIBE", "c")
            talk.said("PSUBSCRIBE", "*c")
            [home] = [each for each in whole(running) if _subscribed(each["primary"]["address"], "c")]
            channel = next(f"s{n}" for n in range(1000) if _within(home["slots"], f"s{n}"))
            talk.said("SSUBSCRIBE", channel)
            os.kill(home["primary"]["pid"], signal.SIGKILL)
            _heard_again(talk, publisher, "PUBLISH", "c")
            _heard_again(talk, publisher, "SPUBLISH", channel)
            assert publisher.call("PUBLISH", "c", "end") == b":2\r\n"
            until(lambda: _words(talk.receive())[-1] == b"end", "the last message")
            assert _words(talk.receive()) == [b"pmessage", b"*c", b"c", b"end"]


def test_who_does_not_read_is_cut_as_the_limits_say(endpoint: Up, tmp_path: Path) -> None:
    limits = {"pubsub_output_limit": "256kb", "pubsub_output_soft_limit": "64kb", "pubsub_output_soft_seconds": 0.5}
    with proxy_beside(endpoint, tmp_path, clients=limits) as url:
        with _deaf(url) as deaf, Talk.to(url) as reader, Talk.to(url) as publisher:
            reader.said("SUBSCRIBE", "loud")
            sent = 0
            while publisher.call("PUBLISH", "loud", "x" * 65536) == b":2\r\n":
                sent += 1
                assert decode(reader.receive())[2] == b"x" * 65536
                assert sent < 1000
            assert _is_cut(deaf)
        with _deaf(url) as deaf, Talk.to(url) as publisher:
            while not _waiting_for(publisher) > 64 << 10:
                assert publisher.call("PUBLISH", "loud", "x" * 16384) == b":1\r\n"
            until(lambda: publisher.call("PUBSUB", "NUMSUB", "loud").endswith(b":0\r\n"), "the soft limit has cut it")
            assert _is_cut(deaf)


def test_a_subscriber_may_be_idle(endpoint: Up, tmp_path: Path) -> None:
    with ExitStack() as stack:
        url = stack.enter_context(proxy_beside(endpoint, tmp_path, clients={"idle_timeout": 0.5}))
        talk, plain = (stack.enter_context(Talk.to(url)) for _ in range(2))
        talk.said("SUBSCRIBE", "a")
        assert plain.at_eof()  # it is closed, and was heard of later
        assert talk.call("PING") == b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
        talk.said("UNSUBSCRIBE")
        assert talk.at_eof()


def test_how_much_a_client_subscribes_is_bounded(endpoint: Up, tmp_path: Path) -> None:
    with proxy_beside(endpoint, tmp_path, clients={"subscriptions": 3}) as url, Talk.to(url) as talk:
        talk.said("SUBSCRIBE", "a", "b")
        assert talk.call("PSUBSCRIBE", "c", "d") == (
            b"-ERR a client may have 3 subscriptions at most (clients.subscriptions)\r\n"
        )
        assert talk.said("SSUBSCRIBE", "a") == [b"*3\r\n$10\r\nssubscribe\r\n$1\r\na\r\n:1\r\n"]


def test_two_proxies_hear_each_others_clients(endpoint: Up, tmp_path: Path, connect: Callable[..., Talk]) -> None:
    with proxy_beside(endpoint, tmp_path) as url, Talk.to(url) as there:
        here = connect()
        for talk in (here, there):
            talk.said("SUBSCRIBE", "a")
        for publisher in (connect(), Talk.to(url)):
            with publisher:
                # Of another proxy's clients one is counted, where both have their subscriptions at the same node.
                assert publisher.call("PUBLISH", "a", "m") in (b":1\r\n", b":2\r\n")
                assert [_words(talk.receive())[2] for talk in (here, there)] == [b"m", b"m"]


def test_a_node_that_hangs_is_missed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        text = "cluster: {node_timeout_ms: 1000}\nproxy: {timeouts: {probe: 500ms}}"
        running = stack.enter_context(configured(tmp_path, text))
        talk, publisher = (stack.enter_context(Talk.to(running.redis_url)) for _ in range(2))
        talk.said("SUBSCRIBE", "c")
        [home] = [each["primary"] for each in whole(running) if _subscribed(each["primary"]["address"], "c")]
        os.kill(home["pid"], signal.SIGSTOP)
        try:
            _heard_again(talk, publisher, "PUBLISH", "c")
            assert publisher.call("PUBLISH", "c", "m") == b":1\r\n"
        finally:
            os.kill(home["pid"], signal.SIGCONT)
        until(lambda: not _subscribed(home["address"], "c"), "nothing is left behind there")


def test_rules_about_channels_are_the_engines(
    endpoint: Up, connect: Callable[..., Talk], direct: int, protocol: int
) -> None:
    rules = ["on", "nopass", "resetchannels", "&chat:*", "&__keyspace*", "+@all", "~*"]
    came = []
    for port in (None, direct):
        admin = connect(2, port)
        assert admin.call("ACL", "SETUSER", "talker", *rules) == b"+OK\r\n"
        talk, lasting = connect(2, port), connect(2, port)
        for each in (talk, lasting):
            if protocol == 3:
                assert each.call("HELLO", 3, "AUTH", "talker", "any")[:1] == b"%"
            else:
                assert each.call("AUTH", "talker", "any") == b"+OK\r\n"
        frames = [
            talk.said("SUBSCRIBE", "chat:a"),
            talk.said("SUBSCRIBE", "chat:b", "secret"),
            talk.said("PSUBSCRIBE", "chat:*"),
            talk.said("PSUBSCRIBE", "*"),
            talk.said("SSUBSCRIBE", "secret"),
            talk.said("SSUBSCRIBE", "chat:s"),
            lasting.said("SUBSCRIBE", "chat:kept"),
        ]
        if protocol == 3:
            frames += [lasting.said("PUBLISH", "secret", "m"), lasting.said("SPUBLISH", "secret", "m")]
        assert admin.call("ACL", "SETUSER", "talker", "resetchannels", "&chat:kept") == b"+OK\r\n"
        assert talk.at_eof()
        frames.append(lasting.said("PING"))
        assert admin.call("ACL", "DELUSER", "talker") == b":1\r\n"
        assert lasting.at_eof()
        came.append(frames)
    assert came[0] == came[1]


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_listens(endpoint: Up, protocol: int) -> None:
    client = redis.Redis.from_url(endpoint.redis_url, decode_responses=True, protocol=protocol)
    heard: list[str] = []
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(chat=lambda message: heard.append(message["data"]))
        pubsub.psubscribe("ch*")
        until(lambda: (client.pubsub_numsub("chat"), client.pubsub_numpat()) == ([("chat", 1)], 1), "both subscribed")
        until(lambda: pubsub.get_message(timeout=0.05) is None, "the confirmations")
        assert client.publish("chat", "hello") == 2
        message = until(lambda: pubsub.get_message(timeout=0.05), "a message")
        assert (message["type"], message["pattern"], message["data"]) == ("pmessage", "ch*", "hello")
        until(lambda: heard == ["hello"], "the handler")
        assert client.pubsub_channels() == ["chat"]
        assert client.pubsub_numsub("chat") == [("chat", 1)]
        assert client.pubsub_numpat() == 1
    client.close()


def test_globs_match_as_the_engine_matches(direct: int) -> None:
    texts = [b"", b"a", b"b", b"ab", b"abc", b"a*c", b"a]c", b"[a]", b"a-c", b"\\", b"a\\c", b"aXbXc", b"\xff\n", b"^"]
    patterns = [
        *(b"", b"*", b"**", b"?", b"a?c", b"a*", b"*c", b"a*b*c", b"*a*b*", b"[ab]", b"[^ab]", b"[a-b]", b"[b-a]?"),
        *(b"[^a-b]*", b"a[-]c", b"a\\*c", b"\\[a\\]", b"[\\]]", b"a[\\]]c", b"\\\\", b"a\\\\c", b"[]", b"[^]", b"[a"),
        *(b"?*", b"*?", b"*\n", b"a[b", b"[\\^]", b"*X*X*", b"ab*bc", b"\\a"),
    ]
    with Talk("127.0.0.1", direct) as talk, Talk("127.0.0.1", direct) as asker:
        talk.said("SUBSCRIBE", *texts)
        for pattern in patterns:
            theirs = set(decode(asker.call("PUBSUB", "CHANNELS", pattern)))
            assert (pattern, {text for text in texts if glob(pattern)(text)}) == (pattern, theirs)


@pytest.mark.slow
def test_ten_thousand_subscribers_share_a_few_connections(endpoint: Up, tmp_path: Path) -> None:
    count = 10_000
    with proxy_beside(endpoint, tmp_path, clients={"maxclients": count + 10}) as url, ExitStack() as stack:
        talks = [stack.enter_context(Talk.to(url)) for _ in range(count)]
        for talk in talks:
            talk.send("SUBSCRIBE", "all")
        for talk in talks:
            assert decode(talk.receive()) == [b"subscribe", b"all", 1]
        publisher = stack.enter_context(Talk.to(url))
        for number in range(5):
            began = time.monotonic()
            assert publisher.call("PUBLISH", "all", number) == b":%d\r\n" % count
            assert {talk.receive() for talk in talks} == {b"*3\r\n$7\r\nmessage\r\n$3\r\nall\r\n$1\r\n%d\r\n" % number}
            print(f"a message to {count} clients took {time.monotonic() - began:.3f} s")
        listed = on(everybody(endpoint), "CLIENT", "LIST", "TYPE", "pubsub")
        assert sum(each.count(b"name=ackgate-pubsub") for each in listed) <= 3


@pytest.mark.slow
def test_through_failovers_cuts_and_moves_what_is_heard_is_in_order_and_once(tmp_path: Path) -> None:
    channels = [f"c{number}" for number in range(6)]
    with configured(tmp_path, "cluster: {node_timeout_ms: 1000}") as running, ExitStack() as stack:
        talks = [stack.enter_context(Talk.to(running.redis_url)).speak(2 + number % 2) for number in range(6)]
        for talk in talks:
            talk.said("SUBSCRIBE", *channels)
            talk.said("PSUBSCRIBE", "c*")
            talk.said("SSUBSCRIBE", *channels)
            talk.sock.settimeout(0.05)
        heard: dict[tuple[int, bytes, bytes], list[int]] = {}
        publisher = stack.enter_context(Talk.to(running.redis_url))
        published = 0

        def publish(rounds: int) -> None:
            nonlocal published
            for number in range(published + 1, published + 1 + rounds):
                for channel in channels:
                    publisher.call("PUBLISH", channel, number)
                    publisher.call("SPUBLISH", channel, number)
            published += rounds
            for at, talk in enumerate(talks):
                try:
                    while True:
                        kind, *_, channel, message = _words(talk.receive())
                        heard.setdefault((at, kind, channel), []).append(int(message))
                except TimeoutError:
                    continue

        def disturb(step: int) -> None:
            shards = whole(running)
            source, target = shards[step % 3], shards[(step + 1) % 3]
            if step % 4 == 0:
                os.kill(source["primary"]["pid"], signal.SIGKILL)
            elif step % 4 == 1:
                on([source["primary"]["address"]], "CLIENT", "KILL", "TYPE", "pubsub")
            else:
                slots = [key_slot(each.encode()) for each in channels if _within(source["slots"], each)][:1]
                for slot in slots:
                    words = ("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target["primary"]["node_id"])
                    on([source["primary"]["address"]], *words)

        for step in range(8):
            publish(20)
            until(lambda: all(each["replicas"] for each in whole(running)), "every shard has a replica")
            disturb(step)
            publish(20)
        deadline = time.monotonic() + 60
        while not (len(heard) == 18 * len(talks) and all(published in each for each in heard.values())):
            assert time.monotonic() < deadline
            publish(1)
        assert [key for key, each in heard.items() if each != sorted(set(each))] == []


# -- what the tests share ----------------------------------------------------------------------------------
def _words(frame: bytes) -> list[bytes]:
    words = decode(frame)
    assert isinstance(words, list)
    return words


def _owner(running: Up, key: str) -> str:
    return str(next(each["primary"]["address"] for each in whole(running) if _within(each["slots"], key)))


def _subscribed(address: str, channel: str) -> bool:
    return not on([address], "PUBSUB", "NUMSUB", channel)[0].endswith(b":0\r\n")


def _within(ranges: list[list[int]], key: str) -> bool:
    return any(low <= key_slot(key.encode()) <= high for low, high in ranges)


def _heard_again(talk: Talk, publisher: Talk, command: str, channel: str = "c") -> list[int]:
    """Publish numbers until one is heard: those heard."""
    talk.sock.settimeout(0.05)
    heard: list[int] = []
    number = 0
    deadline = time.monotonic() + 60
    while not heard:
        assert time.monotonic() < deadline
        number += 1
        publisher.call(command, channel, number)
        try:
            while True:
                heard.append(int(_words(talk.receive())[-1]))
        except TimeoutError:
            continue
    talk.sock.settimeout(30)
    return heard


@contextmanager
def _set_everywhere(running: Up, name: str, value: str) -> Iterator[None]:
    nodes = [node(address) for address in primaries(running)]
    before = [each.config_get(name)[name] for each in nodes]
    for each in nodes:
        each.config_set(name, value)
    try:
        yield
    finally:
        for each, old in zip(nodes, before, strict=True):
            each.config_set(name, old)
            each.close()


@contextmanager
def _deaf(url: str) -> Iterator[Talk]:
    """A subscriber that reads no message."""
    with Talk.to(url) as talk:
        talk.call("SUBSCRIBE", "loud")
        yield talk


def _is_cut(talk: Talk) -> bool:
    try:
        while talk.sock.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass
    return True


def _waiting_for(talk: Talk) -> int:
    """Bytes that wait for the client that has most of them waiting."""
    return max(map(int, re.findall(rb" omem=(\d+)", talk.call("CLIENT", "LIST"))))
