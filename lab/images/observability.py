"""Programs by which the tests look at airmesh as its users do: Jaeger, the `nats` command line, the Go consumer.

Built of their Go modules as the lab's own programs are (``build.py``), kept in the same cache, and part of no lab.
Jaeger is its own `cmd/jaeger` as released, without the pages of its user interface, which its module does not hold.
"""

from __future__ import annotations

from lab.images.build import SOURCE, Target

JAEGER = Target(
    name="jaeger",
    folder=SOURCE / "lab/images/jaeger",
    sources=("go.mod", "go.sum"),
    go=True,
    estimate=250,
    package="github.com/jaegertracing/jaeger/cmd/jaeger",
)
NATS = Target(
    name="nats",
    folder=SOURCE / "lab/images/natscli",
    sources=("go.mod", "go.sum"),
    go=True,
    estimate=60,
    package="github.com/nats-io/natscli/nats",
)
CONSUMER = Target(
    name="consumer",
    folder=SOURCE / "examples/consumers/go",
    sources=("go.mod", "go.sum", "main.go"),
    go=True,
    estimate=10,
)
