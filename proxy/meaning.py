"""What settings mean, in the words of the rooms that heed them."""

from __future__ import annotations

from proxy.acks.concern import Concern, Rule
from proxy.configfile import read_password
from proxy.control.siblings import Place
from proxy.dataplane import Limits
from proxy.peers import derive
from proxy.settings import DurabilityRule, ProxySettings


def password(file: str | None) -> str | None:
    return read_password(file) if file is not None else None


def shared_key(settings: ProxySettings, place: Place) -> bytes | None:
    """What proxies in front of one cluster have in common and nobody else; None: nothing."""
    file = settings.peers.secret_file
    if file is not None:
        return derive(read_password(file, "peers.secret_file"))
    secret = password(settings.cluster.password_file) or place.secret
    return derive(secret) if secret is not None else None


def limits(settings: ProxySettings) -> Limits:
    clients, lanes = settings.clients, settings.lanes
    return Limits(
        maxclients=clients.maxclients,
        query=clients.query_limit,
        outstanding_commands=clients.outstanding_commands,
        outstanding_bytes=clients.outstanding_bytes,
        outstanding_total=2 * lanes.held_bytes,  # a node that hangs is no node that is gone: nothing is held for it yet
        output=clients.output_limit,
        pushed=clients.pubsub_output_limit,
        pushed_soft=clients.pubsub_output_soft_limit,
        pushed_seconds=clients.pubsub_output_soft_seconds,
        held_commands=lanes.held_commands,
        held_bytes=lanes.held_bytes,
    )


def rule(rule: DurabilityRule) -> Rule:
    concern = Concern(rule.replicas, rule.fsync, rule.timeout, rule.on_timeout)
    return Rule(concern, rule.user, rule.prefix.encode() if rule.prefix is not None else None)
