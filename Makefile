# airmesh: one target per idea. `make help` lists them.
SHELL := /bin/bash
PYTHON := .venv/bin/python
LAB ?= air
INSTALL ?= processes
FABRIC ?= flat
MODEL ?=

.PHONY: help setup lab lab-down test e2e drill-kills drill-addresses drill-tenants drill-churn drill-soak drill-services drill-bus drill-models drill-bgp drill-dns fuzz-bgp test-keys drill-mutants bench bench-bgp bench-dns bench-tracing check format lock test-telemetry events-page images images-setup test-ship test-install test-upgrade vm-setup test-vm compose-setup compose-up compose-down compose-test style drill-faults fuzz-corefiles
help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

setup: .venv/.ready ## install what is missing (Debian packages, .venv)

.venv/.ready: requirements.lock requirements/apt.txt requirements/ship-apt.txt requirements/setup.sh requirements/ship.sh
	@requirements/setup.sh

lab: setup $(if $(filter pods,$(INSTALL)),images) ## a three-node Kubernetes with airmesh as its network, and a tour of it (LAB=name, INSTALL=pods, FABRIC=routed|tor, MODEL=vxlan|ipip|wireguard|auto)
	@$(PYTHON) -m lab preflight
	@$(PYTHON) -m lab up --name $(LAB) --install $(INSTALL) --fabric $(FABRIC) --model '$(MODEL)'
	@$(PYTHON) -m lab tour --name $(LAB)

lab-down: setup ## remove the lab, and prove that nothing of it is left (LAB=name)
	@$(PYTHON) -m lab down --name $(LAB)

# Agents, commands and workers start by the thousand: each module is compiled once.
unexport PYTHONDONTWRITEBYTECODE
TREE = proto kit linux chassis services cli lab deploy

test: setup style ## the whole test suite (what CI runs)
	@$(PYTHON) -m compileall -q $(TREE)
	$(PYTHON) -m lab build --if-possible
	@$(PYTHON) -m pytest -n 4 --durations=25 -m "not slow"; status=$$?; \
	if [ $$status -eq 1 ]; then \
	  echo "AGAIN: what failed is run once more; whatever passes now is flaky, and wants mending"; \
	  $(PYTHON) -m pytest -m "not slow" --last-failed --last-failed-no-failures none; status=$$?; \
	fi; exit $$status

FOCUS ?= \[sig-network\].*\[Conformance\]
SKIP ?=
e2e: setup $(if $(filter pods,$(INSTALL)),images) ## the stock Kubernetes suite against the lab (LAB=, FOCUS=, SKIP=); goes on where it stopped
	@$(PYTHON) -m lab up --name $(LAB) --install $(INSTALL) --fabric $(FABRIC) --model '$(MODEL)'
	@$(PYTHON) -m lab.conformance --name $(LAB) --focus '$(FOCUS)' --skip '$(SKIP)'

drill-kills: setup ## the long kills and rebuilds: everything dies or is lost under traffic (about 6 minutes, in pods 25: LAB=name INSTALL=pods)
	$(if $(filter pods,$(INSTALL)),AIRMESH_TEST_LAB=$(LAB)) $(PYTHON) -m pytest tests/drills/test_kills.py tests/drills/test_rebuilt.py -m slow

drill-addresses: setup ## never twice with 500 pods, the first instant 200 times (about 4 minutes)
	$(PYTHON) -m pytest -s tests/drills/test_never_twice.py tests/drills/test_first_instant.py -m slow

drill-tenants: setup ## one tenant and one stolen key attack for ten minutes while a neighbour goes on
	$(PYTHON) -m pytest -s tests/drills/test_tenants.py -m slow

drill-churn: setup ## 10,000 pods and 2,000 policies come and go: no agent's memory grows (about 4 minutes)
	$(PYTHON) -m pytest -s tests/drills/test_churn.py -m slow

SOAK_MINUTES ?= 60
drill-soak: images ## pods come and go while an agent or server is killed every 20 s: nothing stays (SOAK_MINUTES= after a warm-up; 90 minutes for 60)
	SOAK_MINUTES=$(SOAK_MINUTES) $(PYTHON) -m pytest -s tests/drills/test_soak.py -m slow

drill-services: setup ## 10,000 Services are made: agents answer, loops stay free (about 13 minutes)
	$(PYTHON) -m pytest -s tests/drills/test_many_services.py -m slow -k ten-thousand

drill-models: setup ## every model of routing into every other under traffic, on both fabrics; the scenario (about 15 minutes)
	$(PYTHON) -m pytest -s tests/drills/test_models.py tests/journeys/test_hybrid_ipip.py -m slow

drill-bgp: setup ## the scenario of two top-of-rack switches: spread, faults under connections, the tour; 200 deletions by hand (about 15 minutes)
	$(PYTHON) -m pytest -s tests/journeys/test_bgp_ecmp.py tests/netns/lab/cluster/test_switches.py tests/netns/routing/test_by_hand.py tests/netns/routing/bgp/test_make_before_break.py -m slow

drill-dns: setup ## CoreDNS killed under lookups; one on each node, killed and stopped; ten times the queries at once; 100,000 pairs of A and AAAA (about 7 minutes)
	@command -v dnsperf > /dev/null || { echo "drill-dns: apt-get install --no-install-recommends dnsperf" >&2; exit 1; }
	$(PYTHON) -m pytest -s tests/journeys/test_node_local_dns.py tests/journeys/test_step_of_ten.py -m slow
	$(PYTHON) -m pytest -s tests/netns/dataplane/monitor/test_dns_report.py -m slow

fuzz-bgp: setup ## a million malformed BGP messages (BGP_FUZZ_MESSAGES=, BGP_FUZZ_SEED=; about 3 minutes)
	$(PYTHON) -m pytest -s tests/drills/test_bgp_fuzz.py -m slow

drill-faults: setup ## every fault of tests/drills/faults is injected, named by `airmesh doctor`, mended (about 50 minutes)
	$(PYTHON) -m pytest -s tests/drills/test_faults.py tests/shell/cluster/test_port_range.py -m slow

fuzz-corefiles: setup ## 10,000 generated Corefiles lose nothing; a real CoreDNS starts with 30 installers' forms and 200 of them (COREFILE_SEEDS=; about 10 minutes)
	$(PYTHON) -m pytest -s tests/core/dns/test_forms.py tests/netns/dns/test_forms.py -m slow

drill-bus: setup ## three NATS servers are killed, stopped and set back while agents write (about 3 minutes)
	$(PYTHON) -m pytest -s tests/drills/test_bus_of_three.py tests/shell/chassis/bus/test_cluster_of_servers.py -m slow

test-keys: setup ## keys rotated beneath agents, nodes that come and go, a bus carried over, commands killed anywhere (about 20 minutes)
	$(PYTHON) -m pytest -s tests/shell/cli/install/test_keys.py tests/shell/cli/install/test_authority.py tests/shell/cli/install/test_signer.py tests/shell/cli/install/test_killed.py -m "slow or not slow"

drill-mutants: setup ## bugs sown on purpose, each caught by the suite (about an hour)
	$(PYTHON) -m tests.drills.mutants

test-telemetry: setup ## a real Jaeger, a real Prometheus (Debian's package), consumers in Go and `nats` (5 minutes the first time)
	@command -v promtool > /dev/null || { echo "test-telemetry: apt-get install --no-install-recommends prometheus" >&2; exit 1; }
	$(PYTHON) -m pytest tests/netns/observability tests/shell/observability -m "slow or not slow"

events-page: ## docs/asyncapi.json as a page: build/events/index.html (needs npm)
	@docs/events-page.sh

ARCH ?= $(shell dpkg --print-architecture 2>/dev/null || echo amd64)
images: setup images-setup ## the image of every service, for ARCH (about 4 minutes the first time, 1 later)
	@$(PYTHON) -m deploy.images build --arch $(ARCH)

images-setup: ## install what builds and runs images, unless podman or docker is there
	@requirements/ship.sh

test-ship: images ## the images: two builds with one digest, exact rights, every one ready (about 12 minutes)
	$(PYTHON) -m pytest -s tests/ship -m "slow or not slow"

test-install: images ## `airmesh install` on kubelets, a tour, an uninstall that leaves nothing, and again (3 minutes, and 4 the first time for images)
	$(PYTHON) -m pytest -s tests/drills/test_install.py -m slow

test-upgrade: images ## `airmesh upgrade` to other images and back under 100 flows, while pods start (about 5 minutes)
	$(PYTHON) -m pytest -s tests/drills/test_upgrade.py -m slow

vm-setup: setup ## install qemu and unpack another kernel of Debian, for test-vm
	@requirements/vm.sh

test-vm: vm-setup ## our IPIP and WireGuard against the drivers of another kernel, in qemu (about 5 minutes)
	$(PYTHON) -m pytest -s tests/vm -m "slow or not slow"

compose-setup: setup images-setup ## install compose for podman, in build/compose/venv (docker has its own)
	@command -v podman > /dev/null || exit 0; \
	[ build/compose/venv/.ready -nt requirements/compose.lock ] || { \
	  python3 -m venv build/compose/venv && \
	  build/compose/venv/bin/pip install -q --require-hashes --only-binary :all: -r requirements/compose.lock && \
	  touch build/compose/venv/.ready; }

compose-up: images compose-setup ## a host of the mesh in containers (AIRMESH_KUBECONFIG=, OVERLAY=nats-dies; needs root)
	@$(PYTHON) -m lab.compose up $(addprefix --overlay ,$(OVERLAY))

compose-down: setup ## remove it, and prove that nothing is left (build/compose/secrets stays)
	@$(PYTHON) -m lab.compose down

compose-test: images compose-setup ## it comes up, every fault of an overlay comes and goes, nothing is left
	@$(PYTHON) -m lab.compose images
	$(PYTHON) -m pytest -s tests/compose -m "slow or not slow"

bench: setup ## the numbers of docs/performance.md again (needs the packages of bench/apt.txt)
	$(PYTHON) -m bench.first
	$(PYTHON) -m bench.models
	@$(MAKE) --no-print-directory bench-bgp bench-dns

bench-dns: setup ## lookups of a pod beside kubeadm's CoreDNS and NodeLocal DNSCache, before and after tuning (about 15 minutes)
	$(PYTHON) -m bench.dns

bench-tracing: setup ## what traces cost an ADD: an agent that sends every span beside one that sends none (about 5 minutes)
	$(PYTHON) -m bench.tracing

bench-bgp: setup ## BGP beside BIRD, FRR, GoBGP and ExaBGP: convergence, memory, 500 clients of a reflector (about 10 minutes)
	$(PYTHON) -m bench.bgp
	$(PYTHON) -m bench.bgp --speakers airmesh+kernel,airmesh
	$(PYTHON) -m bench.bgp --family ipv6 --speakers airmesh,BIRD,FRR,GoBGP
	$(PYTHON) -m bench.bgp --routes 800000 --rounds 1 --speakers airmesh,BIRD,FRR,GoBGP
	$(PYTHON) -m bench.bgp.reflector
	$(PYTHON) -m bench.bgp.holds

check: style ## style, types, walls of the house
	.venv/bin/mypy .

style: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: setup ## write the style
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lock: setup ## resolve the manifests into requirements.lock and images.lock (needs uv)
	uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 \
	  --output-file requirements.lock requirements/dev.in {chassis,cli,linux}/pyproject.toml $(wildcard services/*/pyproject.toml)
	uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 \
	  --constraints requirements.lock --output-file requirements/images.lock requirements/images.in
