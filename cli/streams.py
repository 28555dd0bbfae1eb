"""What is followed: flows and events, a line each as they come.

A span of time or for ever; what cannot be read is said on standard error and does not end the stream.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime

import click
from nats.aio.msg import Msg
from rich.console import Console
from rich.text import Text

from cli import gather, show
from cli.faults import Declined
from cli.link import Link
from cli.reports import capture as capture_report
from cli.reports import dns_tuning, pairs
from cli.reports import events as event_report
from cli.reports import findings as finding_report
from cli.reports import flows as flow_report
from cli.reports.bgp import Session
from cli.reports.table import Cell, json_text
from cli.reports.text import printable
from cli.settings import load
from proto.bgp import BgpStatus
from proto.bgp_capture import BgpCapture, BgpCaptureRequest, CapturedMessage
from proto.codec import Malformed, decode
from proto.findings import DoctorRequest
from proto.flow import FlowEvent
from proto.subjects import BGP_CAPTURE, EVENTS, FLOWS

ASKED_EVERY = 0.25
"""Seconds between two questions of a capture."""
FINDINGS_EVERY = 2.0
"""Seconds between two questions what lasts; agents answer from memory."""
DOCTOR_SECONDS = 6.0
"""What the slowest agent has to look at its part: a check has five."""
Printed = tuple[Cell, ...] | str | None
"""A line for a person, a line of JSON, or nothing to show."""


def flows(seconds: float | None, dropped: bool, pod: str, output: str) -> None:
    """Print flows for a span of time, or for ever."""
    subject = f"{FLOWS}.*.{'dropped' if dropped else '*'}"

    def shown(message: Msg) -> Printed:
        event = decode(FlowEvent, message.data)
        event_report.check_speaker(message.subject, event)
        if not flow_report.wanted(event, pod):
            return None
        return json_text(event, indent=0) if output == "json" else flow_report.line(event)

    _follow(subject, seconds, shown)


def events(seconds: float | None, output: str) -> None:
    """Print events for a span of time, or for ever; what this release does not know is passed over, and on a page what
    is told again and again for a program to write (:class:`BgpStatus`).
    """

    def shown(message: Msg) -> Printed:
        kind = event_report.kind_of(message.subject)
        if kind is None or (kind is BgpStatus and output != "json"):
            return None
        traceparent = (message.headers or {}).get("traceparent", "")
        event = decode(kind, message.data)
        event_report.check_speaker(message.subject, event)
        printed = event_report.PrintedEvent(subject=message.subject, traceparent=traceparent, event=event)
        if output == "json":
            return json_text(printed, indent=0)
        return event_report.line(datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3], printed)

    _follow(f"{EVENTS}.>", seconds, shown)


def capture(node: str, peer: str, count: int | None, output: str) -> None:
    """Print BGP messages of sessions as they come, so many of them or for ever."""
    asyncio.run(_capture(node, peer, count, output))


async def _capture(node: str, peer: str, count: int | None, output: str) -> None:
    settings, page = load(os.environ), show.console()
    async with Link(settings) as link:
        async with asyncio.timeout(settings.deadline):
            sessions = await gather.captured(link, node, peer)
        async for of_node, message in _captured(link, sessions, peer):
            shown = capture_report.NodeMessage(node=of_node, message=message)
            _print(page, json_text(shown, indent=0) if output == "json" else capture_report.line(of_node, message))
            if count is not None and (count := count - 1) == 0:
                return


async def _captured(link: Link, sessions: Sequence[Session], peer: str) -> AsyncIterator[tuple[str, CapturedMessage]]:
    """Messages with their nodes, for ever; what there is to say of the capture is said on standard error."""
    nodes = tuple(sorted({one.node for one in sessions}))
    followed = capture_report.Followed(nodes, time.monotonic())
    asked = BgpCaptureRequest(capture=secrets.token_hex(16), nodes=nodes, peer=peer)
    async for found in link.repeat(BGP_CAPTURE, asked, BgpCapture, ASKED_EVERY):
        now, begun = time.monotonic(), followed.begun
        _note(followed.unheard(now))
        if followed.silent(now):
            raise gather.no_agent(", ".join(nodes))
        for node, answer in pairs.by_node([found] if found is not None else ()).items():
            if answer.refused:
                raise Declined(f"{node} captures for as many others as it may", "try again when one has ended")
            _note(followed.take(node, answer, now))
            for message in answer.messages:
                yield node, message
        if followed.over:
            raise Declined("no session is left to capture", "airmesh bgp lists those that there are")
        if followed.begun and not begun:
            _note([f"capturing {', '.join(f'{one.peer} on {one.node} ({one.state})' for one in sessions)}"])


def _note(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        click.echo(f"airmesh: {printable(sentence)}", err=True)


def tuning(seconds: float | None, output: str) -> None:
    """Print DNS reports and steps of changes for a span of time, or for ever; a line when something is another."""
    settings = load(os.environ)

    async def follow() -> None:
        before = ""
        async with Link(settings) as link:
            try:
                async with asyncio.timeout(seconds):
                    while True:
                        state = await gather.tuning(link)
                        line = json_text(state, indent=0) if output == "json" else dns_tuning.line(state)
                        if line != before:
                            click.echo(printable(line))
                        before = line
                        await asyncio.sleep(ASKED_EVERY * 4)
            except TimeoutError:
                return

    asyncio.run(follow())


def findings(output: str) -> None:
    """Print findings of the standing checks for ever; a line when one comes or is gone."""
    asyncio.run(_findings(output))


async def _findings(output: str) -> None:
    page, watched = show.console(), finding_report.Watched()
    async with Link(load(os.environ)) as link:
        click.echo(f"asking all agents each {FINDINGS_EVERY:.0f} s", err=True)
        while True:
            report = await gather.doctor(link, DoctorRequest(standing=True), DOCTOR_SECONDS)
            clock = datetime.now().astimezone().strftime("%H:%M:%S")
            for one in watched.take(report):
                _print(page, json_text(one, indent=0) if output == "json" else finding_report.line(clock, one))
            await asyncio.sleep(FINDINGS_EVERY)


def _follow(subject: str, seconds: float | None, shown: Callable[[Msg], Printed]) -> None:
    settings = load(os.environ)
    page = show.console()

    def begun() -> None:
        click.echo(f"listening on {subject}", err=True)

    def lost(count: int) -> None:
        _note([f"{count} messages are left out: more come than can be shown"])

    async def follow() -> None:
        async with Link(settings) as link:
            try:
                async with asyncio.timeout(seconds):
                    async for message in link.listen(subject, begun, lost):
                        try:
                            _print(page, shown(message))
                        except Malformed as error:
                            wrong = f"an event on {message.subject} cannot be read: {error}"
                            click.echo(f"airmesh: {printable(wrong)}", err=True)
            except TimeoutError:
                return

    asyncio.run(follow())


def _print(page: Console, line: Printed) -> None:
    if isinstance(line, str):
        click.echo(line)
    elif line is not None:
        page.print(Text("  ").join(show.text(cell) for cell in line), soft_wrap=True)
