# Everything runs in .venv, which the first call makes. ARGS= is handed to the command behind a target:
#   make up ARGS="--port 7000 --shards 4"      make test ARGS="tests/cli -k ready"
.DEFAULT_GOAL := help
.PHONY: help up test test-slow monitoring-test dashboards compat compat-suites chaos lint fuzz asan clean bench failover profile switchovers compose-test metrics-page metrics-cost
ARGS ?=
# Tests wait most of the time: more of them than cores at once.
TESTERS ?= 3
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml setup.py proxy/__init__.py \
  $(wildcard proxy/codec/_compiled.py? proxy/dataplane/*.py proxy/dataplane/*.pxd)

help:
	@echo "make up     install what is needed, run a cluster with the proxy in front of it, until Ctrl-C"
	@echo "make test   run the tests"
	@echo "make test-slow  run those that take their time"
	@echo "make monitoring-test  alerts, dashboards and consoles against a real Prometheus and a real browser"
	@echo "make dashboards  write the files of deploy/grafana and deploy/prometheus/consoles anew"
	@echo "make compose-test  run deploy/compose.yaml for real and break it, five minutes; needs Docker and root"
	@echo "make compat  call every command direct and through the proxy, and write COMPATIBILITY.md"
	@echo "make compat-suites  run the suites of redis-py and valkey-py direct and through the proxy, six minutes"
	@echo "make chaos  break nodes, proxies and the network under load for five minutes and read back every acknowledged write"
	@echo "make bench  measure it next to other proxies, twelve minutes; QUICK=1 three, WORKLOAD=A-get one workload alone"
	@echo "make failover  kill and stop primaries, shards and all nodes, and tell how far behind them the proxy is, three minutes"
	@echo "make switchovers  change primaries under load and show how long clients waited"
	@echo "make metrics-page  write METRICS.md from the code"
	@echo "make metrics-cost  measure what metrics by command cost, three minutes"
	@echo "make profile WORKLOAD=A-get  show where its time goes under that load"
	@echo "make lint   ruff and mypy --strict"
	@echo "make fuzz   the two implementations of the codec against each other, at length"
	@echo "make asan   the tests of what is compiled under AddressSanitizer"
	@echo "make clean  remove .venv and caches (never the data in .ackgate)"

up: .venv/installed
	@exec .venv/bin/ackgate up $(ARGS)

test: .venv/installed-dev
	@exec .venv/bin/python -m pytest -m "not slow and not monitoring and not compose" -n $(TESTERS) --dist loadfile $(ARGS)

# What takes seconds each, and is seldom touched.
test-slow: .venv/installed-compat
	@exec .venv/bin/python -m pytest -m slow $(ARGS)

# Rules, dashboards and consoles against a real Prometheus and a real browser.
monitoring-test: .venv/installed-dev
	@for need in prometheus promtool chromium; do command -v $$need >/dev/null 2>&1 || { \
	  echo "make: $$need is missing; on Debian: apt-get install --no-install-recommends prometheus chromium" >&2; exit 1; }; done
	@exec .venv/bin/python -m pytest -m monitoring tests/monitoring $(ARGS)

# What stands in deploy/dashboards as Grafana's files and Prometheus' console; a test fails when they differ.
dashboards: .venv/installed
	@exec .venv/bin/python -m deploy.dashboards

# The deployment in real containers; root, since it cuts them off by their packet filters. Images that cannot be pulled may
# be replaced: BASE_IMAGE, VALKEY_IMAGE, PROM_IMAGE, HAPROXY_IMAGE in the environment, as for docker compose.
compose-test: .venv/installed-dev
	@docker info >/dev/null 2>&1 || { \
	  echo "make: no Docker engine answers; install one and start it (on Debian: apt install docker.io), and run this as root" >&2; exit 1; }
	@docker compose version >/dev/null 2>&1 || { \
	  echo "make: docker has no compose plugin; install version 2 or newer" >&2; exit 1; }
	@for needed in iptables nsenter redis-cli; do command -v $$needed >/dev/null || { \
	  echo "make: $$needed is needed and not on PATH (on Debian: apt install iptables util-linux redis-tools)" >&2; exit 1; }; done
	@exec .venv/bin/python -m pytest -m compose -o faulthandler_timeout=600 tests/compose $(ARGS)

# Every command of the engine, direct and through the proxy; a test holds the page against what is seen.
compat: .venv/installed-dev
	@exec .venv/bin/python -m tests.compat.page

# The list of metrics; a test fails where it is not what the code says.
metrics-page: .venv/installed
	@exec .venv/bin/python -m proxy.observe.page

# Other people's tests. ARGS="--save" keeps the figures for the page, ARGS="--suite redis -k pipeline" runs a part.
compat-suites: .venv/installed-compat
	@exec .venv/bin/python -m tests.compat.suites $(ARGS)

# Needs root, or user namespaces, and iptables. ARGS="--kills 4 --seconds 60" makes it shorter, ARGS='--only "proxy killed"' does
# that alone, ARGS=--help tells the rest. The exit status is not 0 when anything was lost or broken, or a control run not caught.
chaos: .venv/installed-dev
	@exec .venv/bin/python -m tests.chaos $(ARGS)

# WORKLOAD=A-get measures that one alone (several: WORKLOAD="A-get wait-500"), QUICK=1 all of them in three minutes.
# The exit status is not 0 when anything could not be measured.
bench: .venv/installed-bench
	@exec .venv/bin/python -m tests.bench run $(if $(QUICK),--quick) $(WORKLOAD) $(ARGS)

# The exit status is 1 where they cost more than they may. ARGS="--rounds 7 --seconds 1" makes it shorter.
metrics-cost: .venv/installed-bench
	@exec .venv/bin/python -m tests.bench.counting $(ARGS)

# Both targets of the project are held by the exit status. ARGS="--failovers 3 --outages 0" makes it shorter.
failover: .venv/installed-bench
	@exec .venv/bin/python -m tests.bench.failover $(ARGS)

# Ten planned switchovers under load. ARGS="--times 3 --clients 10" makes it shorter.
switchovers: .venv/installed-dev
	@exec .venv/bin/python -m tests.bench.switchover $(ARGS)

profile: .venv/installed-bench
	@exec .venv/bin/python -m tests.bench profile $(or $(WORKLOAD),A-get) $(ARGS)

lint: .venv/installed-dev
	@.venv/bin/ruff check .
	@.venv/bin/mypy --strict --explicit-package-bases proxy shard tests/bench deploy/dashboards

# Both implementations of the codec on the same input for some minutes. ARGS= is the number of examples.
fuzz: .venv/installed-dev
	@exec .venv/bin/python -m tests.codec.fuzz $(ARGS)

# The tests of codec and data plane, and the fuzzer, with what is compiled under AddressSanitizer and UBSan; needs gcc.
# PYTHONMALLOC=malloc: Python's own allocator would hide what is read beside a small object.
SANITIZED := $(CURDIR)/build/sanitized
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
asan: .venv/installed-dev
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)/source
	@cp -r proxy shard pyproject.toml setup.py README.md LICENSE $(SANITIZED)/source
	@echo "building with $(SANITIZE) ..."
	@CC=gcc CFLAGS="$(SANITIZE)" $(PIP) install --no-deps --target $(SANITIZED)/installed $(SANITIZED)/source
	@grep -q __asan_report $(SANITIZED)/installed/proxy/codec/_compiled*.so && \
	grep -q __asan_report $(SANITIZED)/installed/proxy/dataplane/client*.so || { \
	  echo "make: no sanitized build was made; install gcc, libasan and the Python headers" >&2; exit 1; }
	@export LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	  PYTHONPATH="$(SANITIZED)/installed:$(CURDIR)"; \
	.venv/bin/python -P -m pytest -q -o pythonpath= tests/codec tests/dataplane \
	  --ignore-glob 'tests/*/test_engine.py' --ignore tests/dataplane/test_uncompiled.py \
	  --ignore tests/dataplane/test_building.py && \
	.venv/bin/python -P -m tests.codec.fuzz $(or $(ARGS),5000)

# Finds a Python that is new enough AND can make virtual environments; Debian ships the second apart.
.venv/bin/python:
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	  command -v $$python >/dev/null 2>&1 || continue; \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  found=$$python; \
	  $$python -c 'import ensurepip, venv' 2>/dev/null || continue; \
	  echo "making .venv with $$($$python --version)"; \
	  rm -rf .venv; $$python -m venv .venv && exit 0; \
	  rm -rf .venv; exit 1; \
	done; \
	if [ -n "$$found" ]; then \
	  echo "make: $$found cannot make a virtual environment; install its venv module (on Debian: apt install python3-venv)" >&2; \
	else \
	  echo "make: Python 3.11 or newer is needed and none was found on PATH; install it (on Debian 12+: apt install python3 python3-venv)" >&2; \
	fi; \
	exit 1

# The stamps make a second call quick: nothing is installed again until what is depended on changes.
.venv/installed: $(SOURCES) | .venv/bin/python
	@echo "installing ackgate and what it needs into .venv ..."
	@$(PIP) install --editable .
	@touch $@

.venv/installed-dev: $(SOURCES) | .venv/bin/python
	@echo "installing ackgate and what its tests need into .venv ..."
	@$(PIP) install --editable '.[dev]'
	@touch .venv/installed $@

.venv/installed-compat: $(SOURCES) | .venv/bin/python
	@echo "installing ackgate and what other people's tests need into .venv ..."
	@$(PIP) install --editable '.[dev,compat]'
	@touch .venv/installed .venv/installed-dev $@

.venv/installed-bench: $(SOURCES) | .venv/bin/python
	@echo "installing ackgate and what its benchmark needs into .venv ..."
	@$(PIP) install --editable '.[bench]'
	@touch .venv/installed $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis ackgate.egg-info
	rm -f proxy/codec/*.so proxy/dataplane/*.so
	find proxy shard tests -name __pycache__ -type d -prune -exec rm -rf {} +
