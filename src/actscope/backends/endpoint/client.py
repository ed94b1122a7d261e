"""Ask an OpenAI-compatible server for text: bounded, patient, and never losing an answer.

Every prompt ends as an ``EndpointText`` or as an ``ExampleFailure`` in its own place. A connection
carries one request: a server that answers twice on one connection can then not have its second
answer taken for another prompt's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from actscope.backends.endpoint.reply import BadReplyError, EndpointText, read_reply
from actscope.backends.endpoint.request import check_sendable, request_body, request_seed
from actscope.backends.endpoint.retry import (
    HALTING_STATUSES,
    RETRIED_STATUSES,
    backoff,
    retry_after,
)
from actscope.core.activations import ExampleFailure
from actscope.core.errors import BadInputError, ExampleError
from actscope.core.protocols import GenerationParams
from actscope.core.text import Example, as_examples

__all__ = ["Endpoint"]

logger = logging.getLogger(__name__)

_ROUTES = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server and how to talk to it.

    Attributes:
        url: The base, such as ``http://localhost:8000/v1``; routes are added to it.
        model: The model's name on the server.
        route: ``chat`` (chat completions) or ``completions``.
        api_key_env: Name of the environment variable that holds the key. It is read when a request
            is made, sent as a bearer token if it is set, and never kept, logged or shown.
        concurrency: Requests under way at once.
        timeout: Seconds for one request, from connecting to the last byte.
        connect_timeout: Seconds for connecting.
        retries: Further requests for one prompt where a retry can help.
        backoff_base: Bound of the first wait in seconds; it doubles with every attempt.
        backoff_longest: Bound of every wait.
        longest_retry_after: A server that asks to wait longer than this fails the prompt instead.
        largest_reply: Bytes of a reply; a longer one is cut off and fails.
        further: Fields of the request's body that replace or join ours, such as
            ``{"return_token_ids": True}``; None takes a field out.
    """

    url: str
    model: str
    route: str = "chat"
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 300.0
    connect_timeout: float = 10.0
    retries: int = 5
    backoff_base: float = 0.5
    backoff_longest: float = 30.0
    longest_retry_after: float = 120.0
    largest_reply: int = 16 * 2**20
    further: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        _check_url(self.url)
        if self.route not in _ROUTES:
            raise BadInputError("unknown route", got=self.route, expected=" or ".join(_ROUTES))
        if self.concurrency < 1 or self.retries < 0:
            raise BadInputError(
                "an endpoint needs at least one request at once and no negative retries",
                got=f"concurrency {self.concurrency}, retries {self.retries}",
            )
        if min(self.timeout, self.connect_timeout) <= 0:
            raise BadInputError(
                "a timeout must be positive",
                got=f"timeout {self.timeout}, connect_timeout {self.connect_timeout}",
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What to put on record: where the text came from, without a key."""
        return {
            "url": self.url,
            "model": self.model,
            "route": self.route,
            "further": dict(self.further),
        }

    def generate(
        self, prompts: object, params: GenerationParams | None = None
    ) -> list[EndpointText | ExampleFailure]:
        """Ask for one answer a prompt.

        Args:
            prompts: Texts, conversations or examples, as for ``model.capture``; token ids for
                plain completions only.
            params: Length and sampling. Every request carries a seed of its own, made of
                ``params.seed`` and the example's id.

        Returns:
            One item a prompt, in their order. A failure has one of the kinds ``bad_prompt``,
            ``unreachable``, ``timeout``, ``bad_reply``, ``no_text``, ``http_STATUS`` and
            ``not_sent``: the key, the address or the model was refused before, or the server is
            down, and asking on would not help.

        Raises:
            BadInputError: an unknown form of prompt, a parameter or a key that cannot be sent.
        """
        chosen = params or GenerationParams()
        check_sendable(chosen, self.further)
        key = _key(self.api_key_env)
        return _run(_Batch(self, chosen, as_examples(prompts), key).answer_all())


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInputError(
            "an endpoint needs an http address", got=url, expected="http://localhost:8000/v1"
        )
    if parts.username is not None or parts.password is not None:
        raise BadInputError(
            "the address of an endpoint must hold no password: addresses are put on record",
            next_step="set the environment variable that api_key_env names",
        )
    if parts.query or parts.fragment or url.rstrip("/").endswith("/completions"):
        raise BadInputError(
            "give the base address of an endpoint; the route is added to it",
            got=f"{parts.scheme}://{parts.netloc}{parts.path}",
            expected="such as http://localhost:8000/v1",
        )


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise BadInputError(
            f"the key in {variable} holds characters that no header can carry",
            next_step="set it again, without blanks and quotes",
        )
    return key


def _run(work: Coroutine[Any, Any, list[EndpointText | ExampleFailure]]) -> list[Any]:
    """Run to the end, inside a notebook's running loop as well."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    answers = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return answers.result()
    finally:
        answers.cancel()  # Ctrl-C: requests under way are dropped
        asyncio.run_coroutine_threadsafe(_settled(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _settled() -> None:
    """Wait until every other task of this loop has ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


class _AttemptError(Exception):
    """One request failed."""

    def __init__(
        self, kind: str, what: str, *, again: bool = True, wait: float | None = None
    ) -> None:
        self.kind = kind
        self.again = again
        self.wait = wait
        super().__init__(what)


class _Batch:
    """The prompts of one call and what they share: the pause a server asked for, and giving up."""

    def __init__(
        self,
        endpoint: Endpoint,
        params: GenerationParams,
        examples: Sequence[Example],
        key: str,
    ) -> None:
        self._endpoint = endpoint
        self._params = params
        self._examples = examples
        self._key = key
        self._rng = random.Random()
        self._resume_at = 0.0
        self._unreached = 0
        self._halted = ""

    async def answer_all(self) -> list[EndpointText | ExampleFailure]:
        """Workers take the next prompt each; results go to their own places."""
        client = _client(self._endpoint, self._key)
        results: dict[int, EndpointText | ExampleFailure] = {}
        waiting = iter(enumerate(self._examples))

        async def worker(items: Iterator[tuple[int, Example]]) -> None:
            for index, example in items:
                results[index] = await self._answer(client, index, example)

        async with client, asyncio.TaskGroup() as group:
            for _ in range(min(self._endpoint.concurrency, len(self._examples))):
                group.create_task(worker(waiting))
        return [results[index] for index in range(len(self._examples))]

    async def _answer(
        self, client: Any, index: int, example: Example
    ) -> EndpointText | ExampleFailure:
        try:
            body = self._body(example)
        except ExampleError as error:
            return ExampleFailure(example.id, index, error.kind, error.what)
        for attempt in range(self._endpoint.retries + 1):
            if self._halted:
                return ExampleFailure(example.id, index, "not_sent", self._halted)
            await self._pause()
            begun = time.monotonic()
            try:
                reply = await self._ask(client, body)
            except _AttemptError as error:
                if error.again and attempt < self._endpoint.retries:
                    await self._wait(example, attempt, error)
                    continue
                return self._failure(example, index, attempt + 1, error)
            self._unreached = 0
            return EndpointText(
                **vars(reply),
                id=example.id,
                index=index,
                seed=request_seed(self._params.seed, example.id),
                attempts=attempt + 1,
                seconds=time.monotonic() - begun,
            )
        raise AssertionError("the last attempt returns")

    def _body(self, example: Example) -> bytes:
        endpoint = self._endpoint
        chat = endpoint.route == "chat"
        further = endpoint.further
        return request_body(example, endpoint.model, self._params, chat=chat, further=further)

    async def _ask(self, client: Any, body: bytes) -> Any:
        """One request.

        Raises:
            _AttemptError: whatever went wrong with it.
        """
        import httpx2

        try:
            async with asyncio.timeout(self._endpoint.timeout):
                status, headers, content = await self._exchange(client, body)
        except TimeoutError as error:
            seconds = f"{self._endpoint.timeout:g} s"
            raise _AttemptError("timeout", f"the reply was not complete in {seconds}") from error
        except httpx2.ConnectTimeout as error:
            seconds = f"{self._endpoint.connect_timeout:g} s"
            raise _AttemptError("unreachable", f"no connection in {seconds}") from error
        except httpx2.ConnectError as error:
            raise _AttemptError("unreachable", f"no connection: {error}") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            what = f"the connection broke: {type(error).__name__} {error}"
            raise _AttemptError("bad_reply", what) from error
        if status != 200:
            raise self._refused(status, headers, content)
        try:
            return read_reply(content, headers.get("content-type", ""))
        except BadReplyError as error:
            again = error.kind == "bad_reply"
            raise _AttemptError(error.kind, str(error), again=again) from error

    async def _exchange(self, client: Any, body: bytes) -> tuple[int, Any, bytes]:
        """(status, headers, body), of which no more is read than a reply may hold."""
        url = self._endpoint.url.rstrip("/") + _ROUTES[self._endpoint.route]
        async with client.stream("POST", url, content=body) as response:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > self._endpoint.largest_reply:
                    limit = f"{self._endpoint.largest_reply:,} bytes"
                    raise _AttemptError(
                        "bad_reply", f"the reply is longer than {limit}", again=False
                    )
            return response.status_code, response.headers, bytes(content)

    def _refused(self, status: int, headers: Any, content: bytes) -> _AttemptError:
        said = " ".join(content[:400].decode("utf-8", "replace").split())
        what = f"status {status}" + (f": {said[:200]}" if said else "")
        if status in HALTING_STATUSES:
            self._halt(f"the server refused an earlier request with {what}")
        again = status in RETRIED_STATUSES
        wait = retry_after(headers.get("retry-after")) if again else None
        if wait is not None and wait > self._endpoint.longest_retry_after:
            what += f"; it asks to wait {wait:.0f} s, more than longest_retry_after"
            again = False
        return _AttemptError(f"http_{status}", what, again=again, wait=wait)

    async def _wait(self, example: Example, attempt: int, error: _AttemptError) -> None:
        """Before a retry: the server's own wish, else a random part of a growing bound."""
        endpoint = self._endpoint
        delay = backoff(attempt, endpoint.backoff_base, endpoint.backoff_longest, self._rng)
        if error.wait is not None:
            self._resume_at = max(self._resume_at, time.monotonic() + error.wait)
        logger.info(
            "endpoint: example %s, attempt %d failed (%s), again in %.1f s",
            example.id, attempt + 1, error.kind, delay + (error.wait or 0.0),
        )  # fmt: skip
        await self._pause()
        await asyncio.sleep(delay)

    async def _pause(self) -> None:
        """What one request was told to wait, all of them wait."""
        while (left := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def _failure(
        self, example: Example, index: int, attempts: int, error: _AttemptError
    ) -> ExampleFailure:
        self._unreached = self._unreached + 1 if error.kind == "unreachable" else 0
        if self._unreached >= max(2 * self._endpoint.concurrency, 8):
            self._halt(f"{self._unreached} prompts in a row found no connection: {error}")
        tries = f" (after {attempts} attempts)" if attempts > 1 else ""
        message = self._without_key(f"{error}{tries}")
        logger.warning("endpoint: example %s failed: %s", example.id, error.kind)
        return ExampleFailure(example.id, index, error.kind, message)

    def _halt(self, reason: str) -> None:
        self._halted = self._halted or self._without_key(reason)

    def _without_key(self, text: str) -> str:
        """Servers may repeat the key in their complaint about it."""
        return text.replace(self._key, "[key]") if self._key else text


def _client(endpoint: Endpoint, key: str) -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise BadInputError(
            "an endpoint needs the package httpx2", next_step="pip install 'actscope[endpoint]'"
        ) from error
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
    }
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx2.AsyncClient(
        headers=headers,
        follow_redirects=False,  # the key goes to the address that was given, and nowhere else
        timeout=httpx2.Timeout(None, connect=endpoint.connect_timeout),
        limits=httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=0),
    )
