"""The socket that the runtime's executable speaks to."""

from __future__ import annotations

from collections.abc import Callable

from chassis.runtime.service import Runtime
from chassis.telemetry.health import Condition
from services.dataplane.cni.conf import write_conf
from services.dataplane.cni.server import CniServer
from services.dataplane.cni.verbs import Verbs
from services.dataplane.endpoint.attach import Attacher
from services.dataplane.ipam.journal import Journal
from services.dataplane.settings import Settings
from services.dataplane.signals import CallPriority


def announcer(runtime: Runtime[Settings], *conditions: Condition) -> Callable[[], None]:
    """What writes the runtime's configuration once the conditions hold: it may start pods here from then on."""
    settings = runtime.settings

    def announce() -> None:
        ready = all(condition.ok for condition in conditions)
        if ready and write_conf(settings.cni_conf_dir, settings.cni_socket):
            runtime.log.info("cni-conf-written", folder=str(settings.cni_conf_dir))

    return announce


async def start(runtime: Runtime[Settings], attacher: Attacher, journal: Journal, priority: CallPriority) -> None:
    """Answers the runtime from now on, until the service stops."""
    verbs = Verbs(runtime, attacher, journal, priority)

    def on_bug(error: BaseException) -> None:
        runtime.log.error("cni-bug", bug=True, error=error)

    server = CniServer(runtime.settings.cni_socket, verbs.answer, on_bug)
    await server.start()

    async def stop() -> None:
        verbs.stopping = True
        await server.close()

    runtime.on_stop(stop)
