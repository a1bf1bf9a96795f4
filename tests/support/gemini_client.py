"""A plain HTTP client of Gemini's API for the tests: it sends what it is told and reads what comes."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

MODEL = "offline-gemini"
LABELS = ["positive", "negative", "neutral"]


class GeminiClient:
    """One keep-alive connection that speaks plain HTTP."""

    def __init__(self, url: str, *, timeout: float = 10) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)

    def __enter__(self) -> GeminiClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def open(self, action: str, body: Any, *, model: str = MODEL, key: str | None = "k") -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", **({"x-goog-api-key": key} if key else {})}
        raw = body if isinstance(body, bytes) else json.dumps(body)
        self.connection.request("POST", f"/v1beta/models/{model}:{action}", raw, headers)
        return self.connection.getresponse()

    def post(self, action: str, body: Any, **how: Any) -> tuple[int, Any]:
        response = self.open(action, body, **how)
        return response.status, json.loads(response.read())

    def get(self, path: str) -> tuple[int, Any]:
        self.connection.request("GET", path)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())


def asking(prompt: str = "Hello", *, system: str = "", **config: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": prompt}]}], "generationConfig": config}
    return {**body, "systemInstruction": {"parts": [{"text": system}]}} if system else body


def choosing(text: str, labels: list[str]) -> dict[str, Any]:
    schema = {"type": "STRING", "enum": labels}
    return asking(text, responseMimeType="text/x.enum", responseSchema=schema)


def said(payload: Any) -> str:
    return "".join(part["text"] for part in payload["candidates"][0]["content"]["parts"])


def answer_to(url: str, body: Any, **how: Any) -> Any:
    with GeminiClient(url) as client:
        status, payload = client.post("generateContent", body, **how)
    assert status == 200
    return payload


def events(response: http.client.HTTPResponse) -> Iterator[Any]:
    while line := response.readline():
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
