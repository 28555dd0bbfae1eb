"""An endpoint is made, checked and undone: the work behind ADD, CHECK and DEL.

Owns the order of steps (``core.endpoint.lifecycle``) and that a failure, a time-out or a cancelled call undoes all it
did. Promises: an ADD that is repeated answers the same; a DEL succeeds as often as it is called, whatever is missing;
no packet of a pod passes before its policy is in the maps. Calls about one attachment are served one after the other,
others at once.
"""

from __future__ import annotations

import asyncio
import os
import queue
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from chassis.runtime.service import Runtime
from chassis.telemetry.spans import Span
from linux.bpf import BpfError
from linux.netlink import NetlinkRefused
from linux.netns import NotANamespace, open_netns
from proto.events import EndpointDown, EndpointUp
from proto.subjects import event_subject
from services.dataplane.core.attachment import Attachment
from services.dataplane.core.cni.request import CniError, Code, PodRef, Request
from services.dataplane.core.cni.result import Attached, missing, render
from services.dataplane.core.endpoint.lifecycle import LocalEndpoint, Step, Undo, way_back
from services.dataplane.core.endpoint.links import HOST_MAC, PodLink, host_name, pod_mac
from services.dataplane.core.ipam.addressing import BadWish, plan_addresses
from services.dataplane.core.ipam.journal import Ask
from services.dataplane.core.ipam.journal_records import Lease
from services.dataplane.datapath.hooks import Run
from services.dataplane.endpoint.admission import AdmissionWait, Entered
from services.dataplane.endpoint.kernel import EndpointKernel
from services.dataplane.endpoint.links import InterfaceExists
from services.dataplane.endpoint.reaper import Reaper
from services.dataplane.endpoint.registry import Registry
from services.dataplane.feed import Feed
from services.dataplane.ipam.addresses import AddressBook
from services.dataplane.policy.enforce import Enforcer
from services.dataplane.settings import Settings

UP = event_subject("dataplane", "endpoint-up")
DOWN = event_subject("dataplane", "endpoint-down")

T = TypeVar("T")


@dataclass(slots=True)
class _Progress:
    """How far one ADD has come: what its undoing needs to know."""

    attachment: Attachment
    reached: Step | None = None
    leases: tuple[Lease, ...] = ()
    index: int = 0
    endpoint: LocalEndpoint | None = None
    retired: bool = False


class Attacher:
    """Makes and undoes the endpoints of one node."""

    def __init__(
        self,
        runtime: Runtime[Settings],
        kernel: EndpointKernel,
        *,
        feed: Feed,
        admission: AdmissionWait,
        book: AddressBook,
        registry: Registry,
        enforcer: Enforcer,
        reaper: Reaper,
    ) -> None:
        self._node = runtime.settings.node
        self._bus = runtime.bus
        self._log = runtime.log
        self._telemetry = runtime.telemetry
        self._feed = feed
        self._admission = admission
        self._book = book
        self._registry = registry
        self._enforcer = enforcer
        self._reaper = reaper
        self._datapath = kernel.datapath
        self._thread = kernel.thread
        self._links = kernel.links
        self._kernel = kernel

    async def add(self, request: Request) -> bytes:
        """ADD: the result. Raises CniError."""
        started = time.monotonic()
        assert request.pod is not None
        async with self._registry.alone(request.attachment):
            known = self._registry.up.get(request.attachment)
            if known is not None:
                return render(request, await self._again(known, request))
            os.close(_open(request.netns))  # what is no namespace is not waited for
            try:
                entered = await self._admission.enter(request.pod)
            except CniError:
                with self._span(request.pod, self._feed.traceparent(request.pod), time.monotonic() - started):
                    raise
            waited = time.monotonic() - started
            with self._span(request.pod, entered.traceparent, waited) as span:
                span.event("admitted")
                endpoint = await self._make(request, entered, span)
                spent = round((time.monotonic() - started) * 1000, 3)
                asyncio.get_running_loop().call_soon(self._report_up, endpoint, spent)  # the runtime is told first
            return render(request, self._attached(endpoint, request.netns))

    def _span(self, pod: PodRef, parent: str, waited: float) -> AbstractContextManager[Span]:
        """Of an ADD, from when the runtime called: the trace that it is part of is known only with the pod's object."""
        named: dict[str, Any] = {
            "k8s__namespace__name": pod.namespace,
            "k8s__pod__name": pod.name,
            "k8s__node__name": self._node,
        }
        return self._telemetry.span("cni-add", parent, waited=waited, **named)

    async def _again(self, known: LocalEndpoint, request: Request) -> Attached:
        """The same ADD once more: the same answer if all of it is there, else an error that DEL clears."""
        if request.pod is not None and known.first.pod != request.pod.name:
            raise CniError(Code.BAD_CONFIG, f"{known.attachment} belongs to {known.first.namespace}/{known.first.pod}")
        why = await self._not_whole(known, request.netns)
        if why:
            raise CniError(Code.NOT_AS_LEFT, f"{why}; DEL it and ADD it again")
        return self._attached(known, request.netns)

    async def _make(self, request: Request, entered: Entered, span: Span) -> LocalEndpoint:
        progress = _Progress(request.attachment)
        netns = _open(request.netns)
        try:
            return await self._steps(request, entered, netns, progress, span)
        except BaseException as error:
            await asyncio.shield(self._undo(progress))
            raise _as_cni(error) from error
        finally:
            os.close(netns)

    async def _steps(
        self, request: Request, entered: Entered, netns: int, progress: _Progress, span: Span
    ) -> LocalEndpoint:
        pod, identity = entered.admitted.pod, entered.admitted.identity
        plan = plan_addresses(pod, self._feed.namespace(pod.namespace), self._feed.supply())
        if isinstance(plan, BadWish):
            raise CniError(Code.ADDRESS_REFUSED, plan.why)
        node = self._feed.node_object()
        uid = pod.static_uid or pod.uid
        ask = Ask(
            container=request.attachment.container,
            interface=request.attachment.interface,
            namespace=pod.namespace,
            pod=pod.name,
            pod_uid=uid,
            nonce=secrets.token_hex(8),
            identity=identity,
            mac=pod_mac(request.attachment),
        )
        progress.leases = await self._book.acquire(plan, ask, node.uid if node else "")
        progress.reached = Step.ADDRESSED
        span.event("addressed", airmesh__addresses=",".join(str(lease.address) for lease in progress.leases))
        wanted = PodLink(
            attachment=request.attachment,
            uid=uid,
            addresses=tuple(lease.address for lease in progress.leases),
            mtu=self._kernel.mtu,
        )
        progress.reached = Step.GUARDED  # also while it is being made: a call that is given up on finds it by its name
        made = await self._inside(netns, lambda mine: self._links.create(wanted, mine, partial(self._guard, wanted)))
        progress.index = made.index
        span.event("linked", airmesh__ifindex=made.index)
        endpoint = progress.endpoint = LocalEndpoint(
            attachment=request.attachment,
            leases=progress.leases,
            index=made.index,
            cookie=made.cookie,
            traceparent=span.traceparent,
        )
        self._registry.put(endpoint)
        progress.reached = Step.KNOWN
        self._enforcer.learn(endpoint)
        await self._book.kept()  # on its way to the disk since it was acquired
        await self._thread.run(lambda: self._links.bring_up(made.index, wanted))
        progress.reached = Step.UP
        span.event("up")
        return endpoint

    def _guard(self, wanted: PodLink, index: int, run: Run) -> None:
        """Programs on a link that is being made: on the links' thread."""
        self._datapath.attach_endpoint(index, wanted.host_name, run)

    async def _inside(self, netns: int, job: Callable[[int], T]) -> T:
        """A job of the thread with a descriptor of its own: the thread may outlive the call that gave up on it."""
        mine = os.dup(netns)

        def run() -> T:
            try:
                return job(mine)
            finally:
                os.close(mine)

        return await self._thread.run(run)

    async def _undo(self, progress: _Progress) -> None:
        """Goes the way back; a step that fails is logged and the rest still undone."""
        for undo in way_back(progress.reached):
            try:
                await self._undo_step(undo, progress)
            except (OSError, RuntimeError, TimeoutError) as error:
                self._log.error("undo-failed", step=undo.name, container=progress.attachment.container, error=error)

    async def _undo_step(self, undo: Undo, progress: _Progress) -> None:
        name = host_name(progress.attachment)
        match undo:
            case Undo.TAKE_DOWN:
                await self._retire(progress)
            case Undo.FORGET:
                await self._retire(progress)
                self._registry.remove(progress.attachment)
                if progress.endpoint is not None:
                    self._enforcer.forget(progress.endpoint)
            case Undo.DETACH:
                self._datapath.forget(name)
            case Undo.REMOVE_LINK:
                await self._retire(progress)
            case Undo.RELEASE_ADDRESSES:
                await self._book.journal.release(progress.attachment)
                self._book.signal.notify("released")

    async def _retire(self, progress: _Progress) -> None:
        """The link is unreachable when this returns and goes with the next reaping; done once."""
        if progress.retired:
            return
        name, addresses = host_name(progress.attachment), tuple(lease.address for lease in progress.leases)
        await self._thread.run(lambda: self._links.retire_named(name, addresses))
        progress.retired = True
        self._reaper.retire(progress.index)

    async def delete(self, attachment: Attachment) -> None:
        """DEL: nothing of the attachment is left, whatever there was. Raises CniError only when nothing can be
        written.
        """
        async with self._registry.alone(attachment):
            known = self._registry.up.get(attachment)
            leases = self._book.journal.ledger.held_by(attachment)
            progress = _Progress(attachment, Step.UP, leases, known.index if known else 0, known)
            # Of the object's last change, say that it is to end; of one that is gone already, of the ADD.
            pods = [PodRef(namespace=one.namespace, name=one.pod, uid=one.pod_uid) for one in leases[:1]]
            parent = next(map(self._feed.traceparent, pods), "") or (known.traceparent if known else "")
            with self._telemetry.span("cni-del", parent, **self._named(attachment, leases)):
                await asyncio.shield(self._undo(progress))
                if self._book.journal.ledger.held_by(attachment):
                    raise CniError(Code.IO, "the address journal cannot be written; see the agent's log")
                if leases:
                    asyncio.get_running_loop().call_soon(self._report_down, leases)

    async def unrecorded(self) -> frozenset[Attachment]:
        """Attachments that have a link and no endpoint: the agent that made it died before their addresses were on
        disk. Raises CniError when the kernel does not tell.
        """
        busy = self._registry.busy
        try:
            kernel = await self._thread.run(self._links.snapshot)
        except (OSError, queue.Full) as error:
            raise _as_cni(error) from error
        return frozenset(kernel.ours().keys() - busy - self._registry.busy - self._registry.up.keys())

    def _named(self, attachment: Attachment, leases: tuple[Lease, ...]) -> dict[str, Any]:
        """Attributes of a DEL: of one that finds nothing to undo, only whose it would be."""
        named = {"container__id": attachment.container, "k8s__node__name": self._node}
        for lease in leases[:1]:
            named |= {"k8s__namespace__name": lease.namespace, "k8s__pod__name": lease.pod}
        return named

    async def check(self, request: Request) -> bytes:
        """CHECK: an empty answer, or CniError 102 that names what is missing."""
        known = self._registry.up.get(request.attachment)
        if known is None:
            raise CniError(Code.NOT_AS_LEFT, f"nothing is attached for {request.attachment.container}")
        why = missing(request.previous or {}, self._attached(known, request.netns))
        why = why or await self._not_whole(known, request.netns)
        if why:
            raise CniError(Code.NOT_AS_LEFT, why)
        return b""

    async def _not_whole(self, known: LocalEndpoint, path: str) -> str:
        """The first thing that an endpoint lacks in the kernel, as a sentence; empty if nothing."""
        netns = _open(path)
        try:
            interface = known.attachment.interface
            seen = await self._thread.run(lambda: (self._links.snapshot(), self._links.pod_addresses(netns, interface)))
        finally:
            os.close(netns)
        kernel, addresses = seen
        ours = kernel.ours().get(known.attachment)
        if ours is None or ours[0].index != known.index:
            return f"link {host_name(known.attachment)} is gone"
        if not ours[0].up:
            return f"link {ours[0].name} is down"
        absent = [str(address) for address in known.addresses if address not in addresses]
        if absent:
            return f"{interface} lacks {', '.join(absent)}"
        without = [str(address) for address in known.addresses if (known.index, address) not in kernel.routes]
        if without:
            return f"the route to {', '.join(without)} is gone"
        state = self._datapath.links().get(ours[0].name)
        return "" if state is not None and state.attached else f"the programs of {ours[0].name} are not attached"

    def _attached(self, endpoint: LocalEndpoint, netns: str) -> Attached:
        return Attached(
            host_interface=host_name(endpoint.attachment),
            host_mac=HOST_MAC,
            interface=endpoint.attachment.interface,
            mac=endpoint.mac,
            netns=netns,
            addresses=endpoint.addresses,
            mtu=self._kernel.mtu,
        )

    def _report_up(self, endpoint: LocalEndpoint, spent: float) -> None:
        first = endpoint.first
        self._log.info(
            "endpoint-up",
            pod=f"{first.namespace}/{first.pod}",
            addresses=[str(address) for address in endpoint.addresses],
            identity=f"{endpoint.identity:016x}",
            milliseconds=spent,
        )
        event = EndpointUp(
            node=self._node,
            namespace=first.namespace,
            pod=first.pod,
            pod_uid=first.pod_uid,
            addresses=endpoint.addresses,
            identity=endpoint.identity,
            milliseconds=spent,
        )
        self._bus.publish(UP, event)

    def _report_down(self, leases: tuple[Lease, ...]) -> None:
        first, addresses = leases[0], tuple(lease.address for lease in leases)
        self._log.info("endpoint-down", pod=f"{first.namespace}/{first.pod}", addresses=[str(a) for a in addresses])
        event = EndpointDown(
            node=self._node, namespace=first.namespace, pod=first.pod, pod_uid=first.pod_uid, addresses=addresses
        )
        self._bus.publish(DOWN, event)


def _open(path: str) -> int:
    try:
        return open_netns(path)
    except (FileNotFoundError, NotANamespace) as error:
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_NETNS={path}: {error}") from error


def _as_cni(error: BaseException) -> BaseException:
    """What the runtime is told of a failure."""
    match error:
        case InterfaceExists():
            return CniError(Code.INTERFACE_EXISTS, f"the container already has an interface {error}")
        case NetlinkRefused() | BpfError() | NotANamespace():
            return CniError(Code.KERNEL_REFUSED, str(error))
        case TimeoutError() | queue.Full():
            return CniError(Code.TRY_AGAIN_LATER, "the kernel did not answer in time")
        case _:
            return error
