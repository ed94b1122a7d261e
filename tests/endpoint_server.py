"""A real HTTP server on localhost whose every answer is scripted, down to the bytes."""

from __future__ import annotations

import json
import socket
import socketserver
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Behaviour = Callable[["Handler", dict[str, Any]], None]


@dataclass
class Seen:
    """One request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float

    @property
    def prompt(self) -> Any:
        if "messages" in self.body:
            return self.body["messages"][-1]["content"]
        return self.body["prompt"]


class Handler(socketserver.StreamRequestHandler):
    server: Server
    hung_up = False

    def handle(self) -> None:
        while True:
            line = self.rfile.readline().decode("latin-1")
            if not line.strip():
                return
            path = line.split()[1]
            headers: dict[str, str] = {}
            while header := self.rfile.readline().decode("latin-1").strip():
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            body = json.loads(self.rfile.read(int(headers.get("content-length", 0))) or b"{}")
            seen = Seen(path, headers, body, time.monotonic())
            behaviour = self.server.next(seen)
            try:
                behaviour(self, body)
                self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                return
            finally:
                self.server.finished()
            if self.hung_up:
                return

    def send(
        self,
        content: bytes,
        status: str = "200 OK",
        content_type: str = "application/json",
        length: int | None = None,
        **headers: str,
    ) -> None:
        length = len(content) if length is None else length
        head = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {length}"]
        head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.wfile.write("\r\n".join([*head, "", ""]).encode() + content)


@dataclass
class Script:
    """What to answer: behaviours by prompt, one for each attempt, the last one for good."""

    behaviours: dict[Any, list[Behaviour]] = field(default_factory=dict)
    default: list[Behaviour] = field(default_factory=list)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = Script(default=[echo])
        self.seen: list[Seen] = []
        self.at_once = 0
        self.most_at_once = 0
        self._attempts: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def on(self, prompt: str, *behaviours: Behaviour) -> None:
        self.script.behaviours[prompt] = list(behaviours)

    def always(self, *behaviours: Behaviour) -> None:
        self.script.default = list(behaviours)

    def next(self, seen: Seen) -> Behaviour:
        with self._lock:
            self.seen.append(seen)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            key = json.dumps(seen.prompt)
            attempt = self._attempts[key]
            self._attempts[key] += 1
        prompt = seen.prompt if isinstance(seen.prompt, str) else None
        listed = self.script.behaviours.get(prompt, self.script.default)
        return listed[min(attempt, len(listed) - 1)]

    def finished(self) -> None:
        with self._lock:
            self.at_once -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no error here."""


def chat_json(text: Any, **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "model": "served-model",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }


def prompt_of(body: dict[str, Any]) -> Any:
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


def echo(handler: Handler, body: dict[str, Any]) -> None:
    """The answer names the prompt, so that a mix-up shows."""
    text = f"answer to {prompt_of(body)}"
    if "messages" in body:
        handler.send(json.dumps(chat_json(text)).encode())
        return
    choice = {"index": 0, "finish_reason": "length", "text": text}
    handler.send(json.dumps({"id": "cmpl-1", "choices": [choice]}).encode())


def says(text: Any, **message: Any) -> Behaviour:
    return lambda handler, body: handler.send(json.dumps(chat_json(text, **message)).encode())


def sends(content: bytes, **options: Any) -> Behaviour:
    return lambda handler, body: handler.send(content, **options)


def status(
    line: str, content: bytes = b'{"error": {"message": "no"}}', **headers: str
) -> Behaviour:
    return lambda handler, body: handler.send(content, status=line, **headers)


def slow_start(seconds: float) -> Behaviour:
    def act(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        echo(handler, body)

    return act


def drip(pause: float) -> Behaviour:
    """A whole answer, one byte at a time: no single read ever waits long."""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        content = json.dumps(chat_json("slow")).encode()
        handler.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode())
        for byte in content:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(pause)

    return act


def endless(handler: Handler, body: dict[str, Any]) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")


def hang_up(handler: Handler, body: dict[str, Any]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.hung_up = True


def reset_in_the_body(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(b'{"choices": [{"mess', length=500)
    handler.wfile.flush()
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.hung_up = True  # closing now sends a reset


def truncated(handler: Handler, body: dict[str, Any]) -> None:
    """Fewer bytes than announced."""
    whole = json.dumps(chat_json("cut")).encode()
    handler.send(whole[:-20], length=len(whole))
    hang_up(handler, body)


def twice(handler: Handler, body: dict[str, Any]) -> None:
    """The same answer twice on one connection."""
    echo(handler, body)
    echo(handler, body)


def in_pieces(handler: Handler, body: dict[str, Any]) -> None:
    """UTF-8 split between chunks."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for byte in json.dumps(chat_json("caf\u00e9 \U0001f980"), ensure_ascii=False).encode():
        handler.wfile.write(b"1\r\n" + bytes([byte]) + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")
