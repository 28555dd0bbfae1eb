"""Programs by which the tests look at airmesh as its users do: Jaeger, an OpenTelemetry collector, the `nats` command
line, the Go consumer, and Grafana's own types of a dashboard.

Built of their Go modules as the lab's own programs are (``build.py``), kept in the same cache, and part of no lab.
Jaeger is its own `cmd/jaeger` as released, without the pages of its user interface, which its module does not hold. The
collector has the parts that ``compose/collector.yaml`` names, of the release that Jaeger is built of.
Grafana is in no package and no module; its Foundation SDK reads what it reads.
"""

from __future__ import annotations

from lab.images.build import go_target

_TOOL = ("go.mod", "go.sum")
JAEGER = go_target("jaeger", "lab/images/jaeger", _TOOL, 250, package="github.com/jaegertracing/jaeger/cmd/jaeger")
COLLECTOR = go_target("collector", "lab/images/collector", (*_TOOL, "main.go"), 90)
NATS = go_target("nats", "lab/images/natscli", _TOOL, 60, package="github.com/nats-io/natscli/nats")
DASHBOARDS = go_target("dashboards", "lab/images/dashboards", (*_TOOL, "main.go"), 200)
CONSUMER = go_target("consumer", "examples/consumers/go", (*_TOOL, "main.go"), 10)
