"""Actors of Dramatiq with the broker behind the proxy.  The hash tag keeps its scripts' keys in one slot."""

from __future__ import annotations

import os

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

URL = os.environ["REDIS_URL"]
dramatiq.set_broker(RedisBroker(url=URL, namespace="{dramatiq}"))
done = redis.Redis.from_url(URL)


@dramatiq.actor(max_retries=3, min_backoff=10, max_backoff=50)
def work(number: int) -> None:
    """Every seventh fails once."""
    if number % 7 == 0 and done.sadd("failed-once", number):
        raise ValueError("try again")
    done.sadd("done", number)
