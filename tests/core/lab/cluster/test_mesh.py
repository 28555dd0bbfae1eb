"""Which agents a lab runs, where, and with which settings."""

from collections import Counter
from pathlib import Path

from lab.cluster.mesh import agent_environment, agents
from lab.paths import paths, settings
from lab.topology import plan

WHERE = paths("air", settings({}))
TOPOLOGY = plan("air", 3)
AGENTS = list(agents(WHERE, TOPOLOGY, Path("/cache"), "/sys/fs/cgroup/unified"))


def test_services_run_where_and_as_often_as_the_design_says() -> None:
    assert Counter((agent.service, agent.host.name) for agent in AGENTS) == {
        ("cluster", "cp"): 1,
        ("ipam", "cp"): 2,
        ("policy", "cp"): 2,
        ("dns", "cp"): 1,
        ("routing", "cp"): 1,
        ("dataplane", "cp"): 1,
        **{(service, f"n{i}"): 1 for service in ("routing", "dataplane") for i in (1, 2, 3)},
    }


def test_names_and_health_ports_do_not_collide() -> None:
    assert len({agent.name for agent in AGENTS}) == len(AGENTS)
    assert len({(agent.host.name, agent.health_port) for agent in AGENTS}) == len(AGENTS)


def test_a_nodes_agents_have_users_of_their_own_and_that_nodes_paths() -> None:
    (agent,) = (agent for agent in AGENTS if agent.name == "dataplane-n2")
    environment = agent_environment(WHERE, TOPOLOGY, agent)
    assert environment["AIRMESH_NATS_USER"] == "dataplane-n2"
    assert environment["AIRMESH_NATS_SEED_FILE"].endswith("/nats/seeds/dataplane-n2.seed")
    assert environment["AIRMESH_NATS_URL"] == "nats://172.31.0.2:4222"
    assert environment["AIRMESH_PIN_ROOT"] == "/run/airmesh-labs/air/n2/bpf"
    assert environment["AIRMESH_NODE"] == "n2"
