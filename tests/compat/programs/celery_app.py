"""A Celery application, broker and results behind the proxy.  The hash tag keeps its transactions in one slot."""

from __future__ import annotations

import os

from celery import Celery

URL = os.environ["REDIS_URL"]
TAG = {"global_keyprefix": "{celery}"}

app = Celery("compat", broker=URL, backend=URL)
app.conf.update(
    broker_transport_options=TAG,
    result_backend_transport_options=TAG,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


@app.task
def add(left: int, right: int) -> int:
    return left + right


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(bind=True, max_retries=3, default_retry_delay=0.05)
def third_time(self) -> int:  # type: ignore[no-untyped-def]
    """Succeeds when it is tried for the third time."""
    if self.request.retries < 2:
        raise self.retry()
    return int(self.request.retries)
