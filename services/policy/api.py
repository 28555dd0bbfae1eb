"""The endpoint ``explain``: the verdict for a flow and its reasons, from the compiled rules that are published."""

from __future__ import annotations

import asyncio

from chassis.faults import Refused
from proto.requests import ExplainMany, ExplainRequest, Explanation, Explanations
from services.policy.compile_loop import CompileLoop
from services.policy.core.explain import Explainer, NotFound
from services.policy.core.graph import Graph

MAX_QUESTIONS = 4096
MAX_TEXT = 600
"""Longest text of one end: two names of the API's longest, and a slash."""
BREATH = 64


class Api:
    """Endpoints of ``policy``. Refuses with ``not-synced`` until everything was compiled once."""

    def __init__(self, graph: Graph, compile_loop: CompileLoop) -> None:
        self._graph = graph
        self._compile_loop = compile_loop
        self._explainer: tuple[int, Explainer] | None = None

    async def explain(self, question: ExplainRequest) -> Explanation:
        """``policy.explain``; an end that is not there is refused as ``not-found``."""
        _check(question)
        async with self._compile_loop.lock:
            explainer = self._current()
            try:
                return self._answer(explainer, question)
            except NotFound as why:
                raise Refused("not-found", str(why)) from why

    async def matrix(self, request: ExplainMany) -> Explanations:
        """``policy.matrix``; an end that is not there is answered as not allowed, with the reason."""
        if len(request.questions) > MAX_QUESTIONS:
            raise Refused("too-many", f"{len(request.questions)} questions at once; ask at most {MAX_QUESTIONS}")
        for question in request.questions:
            _check(question)
        answers = []
        async with self._compile_loop.lock:
            explainer = self._current()
            for count, question in enumerate(request.questions, 1):
                try:
                    answers.append(self._answer(explainer, question))
                except NotFound as why:
                    answers.append(self._unknown(str(why)))
                if count % BREATH == 0:
                    await asyncio.sleep(0)
        return Explanations(answers=tuple(answers))

    def _current(self) -> Explainer:
        if self._compile_loop.compiled_up_to is None:
            raise Refused("not-synced", "policies and pods are still being read; ask again", retry=True)
        if self._explainer is None or self._explainer[0] != self._compile_loop.generation:
            self._explainer = self._compile_loop.generation, Explainer(self._graph)
        return self._explainer[1]

    def _answer(self, explainer: Explainer, question: ExplainRequest) -> Explanation:
        verdicts = explainer.explain(question.source, question.destination, question.protocol, question.port)
        return Explanation(
            allowed=verdicts.allowed,
            egress_allowed=verdicts.egress.allowed,
            ingress_allowed=verdicts.ingress.allowed,
            reasons=verdicts.reasons,
            source_identity=verdicts.source.identity,
            destination_identity=verdicts.destination.identity,
            revision=self._revision(),
        )

    def _unknown(self, why: str) -> Explanation:
        return Explanation(
            allowed=False,
            egress_allowed=False,
            ingress_allowed=False,
            reasons=(why,),
            source_identity=0,
            destination_identity=0,
            revision=self._revision(),
        )

    def _revision(self) -> str:
        revision = self._compile_loop.compiled_up_to
        return "" if revision is None else revision.text


def _check(question: ExplainRequest) -> None:
    """Raise Refused for a question that can have no answer."""
    for name, text in (("source", question.source), ("destination", question.destination)):
        if not 0 < len(text) <= MAX_TEXT:
            raise Refused("malformed", f"{name} has {len(text)} characters: give namespace/pod or an address")
    if not 0 <= question.port <= 65535:
        raise Refused("malformed", f"port {question.port} is not within 0 to 65535")
    if not 0 <= question.protocol <= 255:
        raise Refused("malformed", f"protocol {question.protocol} is not within 0 to 255 (6 TCP, 17 UDP, 132 SCTP)")
